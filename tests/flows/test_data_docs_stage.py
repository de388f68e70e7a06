"""Where people are sent who are told of a batch: with a real MLflow, without it, and before there is a champion."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import httpx
import polars as pl
import pytest

from flows import data_docs
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from rollout.ledger import Entry, Ledger, Model
from validation.contract import ValidationResult, validate

NOW = datetime(2026, 1, 8, 12, 30, tzinfo=UTC)
PAGE = f"{PIPELINE.name}.html"


@pytest.fixture
def judged() -> ValidationResult:
    columns = {f.name: [1.0] * 4 if f.kind == "numeric" else ["sofa"] * 4 for f in PIPELINE.features}
    rows = pl.DataFrame({"entity_key": ["o1", "o2", "o3", "o4"], **columns})
    found = validate(rows, PIPELINE.contract, PIPELINE.name)
    assert not found.verdict.passed
    return found


def use(monkeypatch: pytest.MonkeyPatch, home: Path, tracking_uri: str, champion: str | None) -> None:
    """A pipeline in a home of its own, whose ledger has this champion."""
    home.mkdir()
    settings = Settings(home=home, mlflow_tracking_uri=tracking_uri)
    ledger = Ledger(settings.ledger_url)
    if champion:
        model = Model(champion, f"file:///{champion}")
        ledger.append(Entry(PIPELINE.name, 1, NOW, "promote", model, None, 0.0, "", None))
    context = SimpleNamespace(settings=settings, spec=PIPELINE, ledger=ledger)
    monkeypatch.setattr(data_docs, "open_context", lambda _: context)
    monkeypatch.setattr(data_docs, "get_run_logger", lambda: logging.getLogger("flow"))


def document(judged: ValidationResult, as_of: datetime = NOW) -> str:
    return str(asyncio.run(data_docs.document.fn(PIPELINE.name, judged, "score", as_of)))


def local(link: str) -> Path:
    assert link.startswith("file:")
    return Path(unquote(urlsplit(link).path))


def test_the_link_leads_to_a_whole_page_in_mlflow(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: ValidationResult
) -> None:
    use(monkeypatch, tmp_path / "home", mlflow_server, "7")
    link, later = document(judged), document(judged, NOW + timedelta(hours=1))
    assert link.startswith(f"{mlflow_server}/#/experiments/")
    run_id, path = link.split("/runs/")[1].split("/artifacts/")
    assert path == f"data_docs/score/20260108T123000.000000Z/{PAGE}"
    assert later.split("/artifacts/")[0] == link.split("/artifacts/")[0]
    run = httpx.get(f"{mlflow_server}/api/2.0/mlflow/runs/get", params={"run_id": run_id}).json()["run"]
    assert run["info"]["run_name"] == "version 7"
    stored = local(run["info"]["artifact_uri"]) / path
    mask = os.umask(0)
    os.umask(mask)
    assert stored.parent.stat().st_mode & 0o777 == 0o777 & ~mask, "whoever may read other artifacts may read these"
    found = httpx.get(f"{mlflow_server}/get-artifact", params={"run_uuid": run_id, "path": path})
    assert judged.verdict.reason in found.text
    assert "4 unexpected values found" in found.text
    assert 'href="..' not in found.text, "nothing lies beside it"
    assert len(list((tmp_path / "home" / "data_docs").rglob("result.json"))) == 2, "the site is written all the same"


def test_with_mlflow_away_the_link_is_the_file_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: ValidationResult, free_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    use(monkeypatch, tmp_path / "home", f"http://127.0.0.1:{free_port}", "7")
    assert judged.verdict.reason in local(document(judged)).read_text()
    assert f"not in MLflow: MLflow does not answer at http://127.0.0.1:{free_port}" in caplog.text


def test_before_there_is_a_champion_the_link_is_the_file_and_the_log_says_why(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: ValidationResult,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    use(monkeypatch, tmp_path / "home", mlflow_server, None)
    assert judged.verdict.reason in local(document(judged)).read_text()
    assert "has no champion" in caplog.text
