"""Alerts of a flow: where their targets are kept, who is told what, and what a run that is killed leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from pydantic import SecretStr
from webhook import Webhook, listening
from webhook import webhook as webhook  # a fixture

from features.lake import Lake
from flows import alert as alert_flow
from flows.alert import BLOCK, AlertSummary, alert_targets, send_alerts
from flows.context import open_context
from perennial.errors import UsageError
from perennial.settings import Settings, settings
from validation.alert_log import NOBODY, read_sent, told_to
from validation.alerts import Finding, Moved, Severity
from validation.notify import open_target
from validation.verdict import Status, Verdict

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DRIFT = Finding("drift", Severity.WARNING, "1 of 2 columns drifted", (Moved("a", "PSI 0.4"),))
FAIL = {"drift": Verdict(Status.FAIL, "a drifted")}
PASS = {"drift": Verdict(Status.PASS, "none of 2 columns drifted")}


@pytest.fixture(scope="module", autouse=True)
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=90):
        yield


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.cache_clear()
    open_context.cache_clear()
    yield Lake(Settings(home=tmp_path), "flights")
    settings.cache_clear()
    open_context.cache_clear()


@flow
async def tell(urls: Sequence[SecretStr], hour: int, failing: bool = True) -> AlertSummary:
    findings, verdicts = ((DRIFT,), FAIL) if failing else ((), PASS)
    return await send_alerts("flights", urls, findings, verdicts, "no retrain: cooldown", NOW + hour * HOUR)


def told(*urls: str, hour: int, failing: bool = True) -> AlertSummary:
    found = asyncio.run(tell([SecretStr(url) for url in urls], hour, failing))
    assert isinstance(found, AlertSummary)
    return found


def name(url: str) -> str:
    return open_target(SecretStr(url), 1).name


def keep(value: Any) -> None:
    async def save() -> None:
        await Secret(value=value).asave(BLOCK, overwrite=True)

    asyncio.run(save())


def targets(**more: Any) -> list[str]:
    return [url.get_secret_value() for url in asyncio.run(alert_targets(Settings(**more)))]


def test_targets_come_from_the_environment_else_from_the_secret_block_else_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert targets() == []
    keep("json://a.example/?to=1,2\nslack://b/c/d")
    assert targets() == ["json://a.example/?to=1,2", "slack://b/c/d"]
    keep(["json://a.example", "json://b.example"])
    assert targets() == ["json://a.example", "json://b.example"]
    monkeypatch.setenv("PERENNIAL_ALERT_URLS", "json://mine.example json://yours.example")
    assert targets() == ["json://mine.example", "json://yours.example"]
    monkeypatch.setenv("PERENNIAL_ALERT_URLS", " ")
    assert targets() == ["json://a.example", "json://b.example"]
    keep({"url": "json://s3cret.example"})
    with pytest.raises(UsageError, match=BLOCK) as caught:
        targets()
    assert "s3cret" not in str(caught.value)


def test_an_alert_comes_once_and_its_recovery_once(lake: Lake, webhook: Webhook) -> None:
    first = told(webhook.url, hour=0)
    assert first.told == f"'WARNING flights: drift' went to {name(webhook.url)}"
    assert told(webhook.url, hour=0).told == "nothing was sent"
    assert told(webhook.url, hour=1).warnings == ()
    told(webhook.url, hour=24)
    told(webhook.url, hour=25, failing=False)
    told(webhook.url, hour=26, failing=False)
    assert webhook.titles == ["WARNING flights: drift", "Still: WARNING flights: drift", "Recovered: flights: drift"]
    assert "Decision: no retrain: cooldown" in webhook.received[0]["message"]
    sent = read_sent(lake)
    assert sent["kind"].to_list() == ["recovery", "reminder", "alert"]
    assert sent["event_timestamp"].to_list() == [NOW + hour * HOUR for hour in (25, 24, 0)]
    assert sent["headline"].to_list()[0] == "none of 2 columns drifted"


def test_a_target_that_was_away_is_told_later_and_the_others_are_not_told_twice(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    with listening() as steady, listening() as shaky:
        shaky.answer = 503
        url = f"json://kim:pa55w0rd@127.0.0.1:{shaky.port}/hook"
        first = told(steady.url, url, hour=0)
        warning = (
            f"{name(url)} did not get 'WARNING flights: drift': it answered 503 Service Unavailable; "
            "the next run tries again"
        )
        assert first.warnings == (warning,)
        assert warning in caplog.text
        assert "pa55w0rd" not in caplog.text
        shaky.answer = 200
        told(steady.url, url, hour=1)
        assert steady.titles == shaky.titles == ["WARNING flights: drift"]
        told(steady.url, url, hour=2, failing=False)
        assert steady.titles == shaky.titles == ["WARNING flights: drift", "Recovered: flights: drift"]


def test_who_stays_when_a_neighbour_goes_is_told_neither_less_nor_twice(lake: Lake, webhook: Webhook) -> None:
    leaves, stays = (f"{webhook.url}/{place}" for place in ("leaves", "stays"))
    told(leaves, hour=0)
    told(leaves, hour=1, failing=False)
    told(leaves, stays, hour=2)
    # The two are told at the same time.
    assert webhook.paths[:2] == ["/hook/leaves", "/hook/leaves"]
    assert sorted(webhook.paths[2:]) == ["/hook/leaves", "/hook/stays"]
    told(stays, hour=3)
    assert webhook.paths[4:] == []
    told(stays, hour=4, failing=False)
    assert webhook.paths[4:] == ["/hook/stays"]
    assert webhook.titles[4:] == ["Recovered: flights: drift"]


def test_who_was_not_alerted_hears_of_no_recovery(lake: Lake, webhook: Webhook) -> None:
    webhook.answer = 503
    told(webhook.url, hour=0)
    webhook.answer = 200
    assert told(webhook.url, hour=1, failing=False).deliveries == ()
    assert webhook.received == []


def test_without_a_target_the_log_says_so_once_and_the_record_is_kept(
    lake: Lake, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = told(hour=0).warnings
    assert warning.startswith("1 alert went nowhere")
    for mend in ("PERENNIAL_ALERT_URLS", BLOCK, "perennial alerts test"):
        assert mend in warning
    assert caplog.text.count(warning) == 1
    assert told(hour=1).warnings == ()
    assert [t.kind for t in told_to(lake)[NOBODY]] == ["alert"]
    # Nobody has heard of it: a target that is added learns what lasts.
    told(webhook.url, hour=2)
    assert webhook.titles == ["WARNING flights: drift"]


def test_a_mistake_in_a_url_is_told_and_silences_no_other(lake: Lake, webhook: Webhook) -> None:
    (warning,) = told("slak://pa55w0rd", webhook.url, hour=0).warnings
    assert warning.startswith("alert target 1 begins with slak://")
    assert "pa55w0rd" not in warning
    assert webhook.titles == ["WARNING flights: drift"]


class Killed(BaseException):
    """What nothing catches, like a kill."""


def test_a_run_that_is_killed_before_it_recorded_tells_again(
    lake: Lake, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(alert_flow, "record_sent", killed)
        with pytest.raises(Killed):
            told(webhook.url, hour=0)
    assert told_to(lake) == {}
    told(webhook.url, hour=1)
    told(webhook.url, hour=2)
    assert webhook.titles == ["WARNING flights: drift"] * 2


def test_the_command_finds_the_block_and_without_one_says_how_to_make_it(tmp_path: Path, webhook: Webhook) -> None:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_"))}
    own |= {"PERENNIAL_HOME": str(tmp_path), "PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def test_alerts() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perennial.cli", "alerts", "test"]
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)

    keep(webhook.url)
    found = test_alerts()
    assert (found.returncode, found.stdout) == (0, f"{name(webhook.url)}: took it\n"), found.stderr
    asyncio.run(Secret.adelete(BLOCK))
    none = test_alerts()
    assert none.returncode == 2
    assert none.stderr.startswith("perennial: there is no alert target; set PERENNIAL_ALERT_URLS")
    assert BLOCK in none.stderr
