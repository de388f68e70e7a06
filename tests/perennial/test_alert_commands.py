"""`perennial alerts`, as a person runs it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from pydantic import SecretStr
from typer.testing import CliRunner
from webhook import Webhook
from webhook import webhook as webhook  # a fixture

from features.lake import Lake
from flows.context import open_context
from perennial.cli import app
from perennial.errors import StageError
from perennial.settings import Settings, settings
from validation.alert_log import NOBODY, Sent, record_sent
from validation.alerts import Alert, Finding, Kind, Severity
from validation.notify import open_target

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.cache_clear()
    open_context.cache_clear()
    yield tmp_path
    settings.cache_clear()
    open_context.cache_clear()


def name(url: str) -> str:
    return open_target(SecretStr(url), 1).name


def alerts(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["alerts", *arguments])


def test_a_test_goes_to_every_target_and_says_it(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"json://kim:pa55w0rd@127.0.0.1:{webhook.port}/hook"
    monkeypatch.setenv("PERENNIAL_ALERT_URLS", url)
    ran = alerts("test", "flights")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, f"{name(url)}: took it\n", "")
    assert webhook.titles == ["INFO flights: test"]
    assert webhook.received[0]["message"].startswith("This is a test.\n")


def test_a_test_that_a_target_did_not_take_fails_and_says_which(
    webhook: Webhook, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"json://kim:pa55w0rd@127.0.0.1:{free_port}"
    monkeypatch.setenv("PERENNIAL_ALERT_URLS", f"{dead} {webhook.url}, slak://pa55w0rd")
    ran = alerts("test")
    assert ran.exit_code == 1
    assert ran.stdout.splitlines() == [
        f"{name(dead)}: refused, it cannot be reached, or did not answer in time",
        f"{name(webhook.url)}: took it",
    ]
    assert "alert target 3 begins with slak://" in ran.stderr
    assert isinstance(ran.exception, StageError)
    assert "2 of 3 alert targets did not take the test" in str(ran.exception)
    assert "pa55w0rd" not in ran.output + str(ran.exception)
    assert webhook.titles == ["INFO perennial: test"]


def test_what_was_sent_is_shown_newest_first(home: Path) -> None:
    assert alerts("list", "flights").stdout == "flights: 0 messages sent.\n"
    messages: list[tuple[str, Kind, int]] = [(NOBODY, "alert", 0), ("slack://", "reminder", 1)]
    finding = Finding("drift", Severity.WARNING, "a\x1b[2J moved")
    sent = [Sent(to, Alert("flights", kind, finding, "", NOW.replace(hour=hour))) for to, kind, hour in messages]
    record_sent(Lake(Settings(home=home), "flights"), sent, NOW)
    whole = [
        "flights: 2 messages sent:",
        "2026-05-01 01:00:00  reminder, WARNING drift, to slack://",
        r"  a\x1b[2J moved",
        "2026-05-01 00:00:00  alert, WARNING drift, to nobody, there was no target",
        r"  a\x1b[2J moved",
    ]
    assert alerts("list", "flights").stdout.splitlines() == whole
    assert alerts("list", "flights", "--limit", "1").stdout.splitlines() == whole[:3]
