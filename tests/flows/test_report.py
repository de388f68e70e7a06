"""The drift report as monitoring writes it: with a real MLflow and a real Evidently, and without either."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from moved_world import EVIL, FEATURES, World, world

from flows import report
from flows.report import KEPT_REPORTS, ReportLinks, forget_old_reports
from perennial.settings import Settings
from rollout.ledger import Model
from validation.reference_sample import REFERENCE_SAMPLE_FILE, write_reference_sample
from validation.verdict import Status, Verdict

AS_OF = datetime(2026, 1, 8, 3, tzinfo=UTC)
NAME = "20260108T030000Z"


@pytest.fixture(scope="module")
def moved() -> World:
    return world(n=1_000)


@pytest.fixture
def model(tmp_path: Path, moved: World) -> Model:
    """A champion that came with rows of its reference."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    columns = [*(f.name for f in FEATURES), "score"]
    (bundle / REFERENCE_SAMPLE_FILE).write_bytes(write_reference_sample(moved.before, columns, seed=1))
    return Model("7", bundle.as_uri())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Path:
    """A home whose MLflow is away."""
    return use(monkeypatch, tmp_path / "home", f"http://127.0.0.1:{free_port}")


def use(monkeypatch: pytest.MonkeyPatch, home: Path, tracking_uri: str) -> Path:
    settings = Settings(home=home, mlflow_tracking_uri=tracking_uri)
    monkeypatch.setattr(report, "open_context", lambda _: SimpleNamespace(settings=settings))
    return home


def write(it: World, model: Model, as_of: datetime = AS_OF) -> ReportLinks:
    made = report.write_report.fn("flights", it.drift, it.now, model, as_of)
    found = asyncio.run(made)
    assert isinstance(found, ReportLinks)
    return found


def test_the_report_is_below_home_and_in_mlflow_with_both_pages(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: World, model: Model
) -> None:
    home = use(monkeypatch, tmp_path / "home", mlflow_server)
    links = write(moved, model)
    assert links.note == ""
    assert links.path == home / "reports" / "flights" / NAME / "drift.html"
    assert links.link == links.mlflow
    run_id = str(links.mlflow).split("/runs/")[1].split("/")[0]
    assert str(links.mlflow).endswith(f"/artifacts/drift/{NAME}/drift.html")
    for name in ("drift.html", "evidently.html"):
        there = httpx.get(f"{mlflow_server}/get-artifact", params={"run_uuid": run_id, "path": f"drift/{NAME}/{name}"})
        assert there.content == (links.path.parent / name).read_bytes()
    assert 'href="evidently.html"' in links.path.read_text()
    evidently = (links.path.parent / "evidently.html").read_text()
    assert 'href="drift.html"' in evidently
    assert all(name in evidently for name in ("delay", "carrier", "steady", "score"))
    # Evidently writes categories into a script as they are.
    assert EVIL not in evidently
    assert "‹/script>" in evidently or "\\u2039/script>" in evidently


def test_with_mlflow_away_the_local_page_stands_and_the_note_says_so(home: Path, moved: World, model: Model) -> None:
    links = write(moved, model)
    assert links.mlflow is None
    assert links.link == (home / "reports" / "flights" / NAME / "drift.html").as_uri()
    assert Path(unquote(urlsplit(links.link).path)).exists()
    assert "The report is not in MLflow: MLflow does not answer at" in links.note
    assert "MLFLOW_TRACKING_URI" in links.note


def test_a_champion_without_rows_of_its_reference_has_the_pictures_only(home: Path, moved: World, model: Model) -> None:
    write(moved, model)
    (Path(unquote(urlsplit(model.uri).path)) / REFERENCE_SAMPLE_FILE).unlink()
    links = write(moved, model)
    assert links.path is not None
    assert [file.name for file in links.path.parent.iterdir()] == ["drift.html"]
    page = links.path.read_text()
    assert "data:image/png" in page
    assert "version 7 came without rows of its reference" in page
    assert "version 7 came without rows of its reference" in links.note
    assert "evidently.html" not in page


def test_whatever_evidently_raises_the_pictures_stand_and_say_why(
    home: Path, moved: World, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a <b>bin</b> of width 0")

    # What it raises cannot be had on purpose: its known ones are handled.
    monkeypatch.setattr("evidently.Report.run", fails)
    links = write(moved, model)
    assert links.path is not None
    assert "it ended in ZeroDivisionError: a <b>bin</b> of width 0." in links.note
    page = links.path.read_text()
    assert "it ended in ZeroDivisionError: a &lt;b&gt;bin" in page
    assert "data:image/png" in page


def test_whatever_a_picture_raises_the_page_says_what_moved_in_numbers(
    home: Path, moved: World, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("<b>no font</b>")

    monkeypatch.setattr("matplotlib.figure.Figure.subplots", fails)
    links = write(moved, model)
    assert links.path is not None
    page = links.path.read_text()
    assert "data:image/png" not in page
    assert "drawing it ended in RuntimeError: &lt;b&gt;no font&lt;/b&gt;." in page
    assert escape(moved.drift.verdict.reason) in page
    # The score and the three columns that moved, each with its bins.
    assert page.count("<summary>The numbers</summary>") == page.count("The picture is not here") == 3


def test_whatever_the_artifact_store_raises_the_local_page_stands_and_says_why(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: World, model: Model
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials.")

    use(monkeypatch, tmp_path / "home", mlflow_server)
    # Stores are reached by many libraries, and not all of their errors are an OSError.
    monkeypatch.setattr("training.mlflow_rest.shutil.copytree", fails)
    links = write(moved, model)
    assert links.path is not None
    assert links.link == links.path.as_uri()
    assert links.note == "The report is not in MLflow: it ended in RuntimeError: no credentials."


def test_a_window_that_has_not_moved_is_told_without_evidently(home: Path, model: Model) -> None:
    still = world(moved=0.0)
    assert still.drift.verdict.status is Status.PASS
    links = write(still, model)
    assert links.path is not None
    assert "Nothing moved, so Evidently drew nothing." in links.path.read_text()
    assert not (links.path.parent / "evidently.html").exists()


def test_a_page_that_cannot_be_written_is_told_and_ends_nothing(home: Path, moved: World, model: Model) -> None:
    home.mkdir()
    (home / "reports").write_text("in the way")
    links = write(moved, model)
    assert links == ReportLinks(None, None, links.note)
    assert links.link is None
    assert "there is no drift report: " in links.note


def test_only_the_newest_reports_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    names = [(AS_OF + timedelta(hours=h)).strftime(report.FOLDER) for h in range(KEPT_REPORTS + 5)]
    for name in [*names, "mine"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "drift.html").write_text(name)
    forget_old_reports(tmp_path, keep=tmp_path / names[0])  # a replay of history has just written it
    assert {f.name for f in tmp_path.iterdir()} == {names[0], *names[5:], "mine"}


def test_metrics_are_in_mlflow_and_among_the_gauges(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: World, model: Model
) -> None:
    home = use(monkeypatch, tmp_path / "home", mlflow_server)
    verdicts = {
        "drift": moved.drift.verdict,
        "performance": Verdict(Status.PASS, "fine", {"auc": 0.71, "expected_auc": 0.7, "brier": float("nan")}),
    }
    for _ in range(2):
        assert asyncio.run(report.record_metrics.fn("kept", moved.drift, verdicts, model, AS_OF)) == ()
    experiment = httpx.get(
        f"{mlflow_server}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "kept-monitoring"}
    ).json()["experiment"]["experiment_id"]
    (run,) = httpx.post(f"{mlflow_server}/api/2.0/mlflow/runs/search", json={"experiment_ids": [experiment]}).json()[
        "runs"
    ]
    found = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    psi = {f.feature: f.psi for f in moved.drift.features}
    assert found["psi/delay"] == psi["delay"]
    assert found["score_psi"] == psi["score"]
    assert found["missing_rate/delay"] == moved.now["delay"].null_count() / moved.now.height
    assert (found["auc"], found["status/drift"], found["status/performance"]) == (0.71, 3, 0)
    assert not {"brier", "psi/score"} & set(found)
    assert (
        f'perennial_drift_psi{{feature="delay",pipeline="kept"}} {psi["delay"]}'
        in (home / "metrics" / "kept.monitor.prom").read_text()
    )


def test_with_mlflow_away_the_gauges_are_written_and_the_rest_is_told(home: Path, moved: World, model: Model) -> None:
    (wrong,) = asyncio.run(report.record_metrics.fn("flights", moved.drift, {}, model, AS_OF))
    assert "metrics of the run are not in MLflow: MLflow does not answer" in wrong
    assert (home / "metrics" / "flights.monitor.prom").exists()
