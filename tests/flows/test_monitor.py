"""Monitoring's stages on a lake of their own, and the order in which a run tells and records."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from prefect.exceptions import CancelledRun

from features.events import events_schema
from features.labels import PREDICTIONS
from features.lake import Lake
from flows import monitor, stage
from flows.report import tell_labels
from perennial.errors import StageError, StateError, UsageError
from perennial.settings import Settings
from perennial.template.events import SETTLED
from perennial.template.pipeline import PIPELINE
from rollout.ledger import Model
from training.decision import ChampionHistory, RetrainDecision
from validation.calibration import Calibration
from validation.drift import DriftVerdict, FeatureDrift
from validation.log import KeptReport, last_statuses, record_verdicts
from validation.metrics import Interval
from validation.slices import SliceReference
from validation.verdict import Status, Verdict

NOW = datetime(2026, 1, 8, tzinfo=UTC)
AT = pl.Datetime("us", "UTC")
ROWS = 600


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    found = Lake(Settings(home=tmp_path), "shop")
    context = SimpleNamespace(lake=found, spec=PIPELINE, settings=Settings(home=tmp_path), ledger=None)
    monkeypatch.setattr(monitor, "open_context", lambda _: context)
    monkeypatch.setattr(monitor, "read_bundle_file", lambda *_: json.dumps({"holdout": {"auc": 0.9}}))
    return found


def predicted(
    lake: Lake, version: str, score: np.ndarray, created: datetime, at: datetime = NOW - timedelta(days=2)
) -> None:
    times = [at] * ROWS
    rows = {
        "entity_key": [f"o{i}" for i in range(ROWS)],
        "event_timestamp": times,
        "score": score,
        "model_version": version,
    }
    lake.append(
        PREDICTIONS,
        pl.DataFrame(rows).with_columns(pl.col("event_timestamp").cast(AT), created_timestamp=pl.lit(created).cast(AT)),
    )


def settled(lake: Lake, sent_back: np.ndarray) -> None:
    frame = pl.DataFrame(
        {
            "order_id": [f"o{i}" for i in range(ROWS)],
            "event_timestamp": [NOW - timedelta(days=1)] * ROWS,
            "product": "hat",
            "sent_back": sent_back,
            "kafka_partition": 0,
            "kafka_offset": range(ROWS),
            "created_timestamp": [NOW] * ROWS,
            "extra": None,
        }
    )
    lake.append(SETTLED.table, frame.cast(events_schema(SETTLED)).select(events_schema(SETTLED).keys()))


def run(stage: Any, *args: Any) -> Any:
    return asyncio.run(stage.fn(*args))


def test_a_champion_is_judged_by_its_own_predictions(lake: Lake) -> None:
    truth = np.arange(ROWS) % 3 == 0
    settled(lake, truth)
    predicted(lake, "1", np.where(truth, 0.8, 0.2), NOW - timedelta(days=2))
    assert run(monitor.measure, "shop", NOW, Model("1", "file:///1")).performance.verdict.status is Status.PASS
    found = run(monitor.measure, "shop", NOW, Model("2", "file:///2"))
    assert found.performance.verdict.status is Status.INCONCLUSIVE
    assert found.performance.labelled_rows == 0
    # Labels are counted whichever version made the prediction.
    assert found.labels == {"labelled_rows": ROWS, "waiting_rows": 0, "expired_rows": 0, "late_labels": 0}


def of_a_week(lake: Lake, flipped: str) -> None:
    """A week of predictions of one score and truth every day, by product; the newest 200 wait for their label.

    Of the flipped product the truth is the opposite of what the score says. 100 orders are never settled.
    """
    dice = np.random.default_rng(1)
    rows = 8 * 300
    days_before = np.repeat(np.arange(8, 0, -1), 300)
    product = np.where(np.arange(rows) % 2 == 0, "hat", "coat")
    score = dice.choice([0.2, 0.7], rows)
    truth = (dice.random(rows) < score) ^ (product == flipped)
    asked = [NOW - timedelta(days=float(d), hours=-1) for d in days_before]
    made = pl.DataFrame(
        {"entity_key": [f"o{i}" for i in range(rows)], "event_timestamp": asked, "product": product, "score": score}
    )
    at = pl.col("event_timestamp", "created_timestamp").cast(AT)
    lake.append(
        PREDICTIONS, made.with_columns(model_version=pl.lit("1"), created_timestamp=pl.lit(NOW)).with_columns(at)
    )
    told = pl.DataFrame(
        {
            "order_id": made["entity_key"],
            "event_timestamp": [t + timedelta(hours=5) for t in asked],
            "product": product,
            "sent_back": truth,
            "kafka_partition": 0,
            "kafka_offset": range(rows),
            "created_timestamp": NOW,
            "extra": None,
        }
    )
    settled = pl.concat([told[:600], told[700:-200]])
    lake.append(SETTLED.table, settled.cast(events_schema(SETTLED)).select(events_schema(SETTLED).keys()))


def as_at_the_gate(calibrated: bool = True) -> str:
    """What a bundle says of a champion whose scores of 0.2 and 0.7 were worth just that, for either product."""
    curve = Calibration((0.2, 0.7), (0.2, 0.7), ((1e-5, 0.0), (0.0, 1e-5)), 0.0, 20_000, 8, 0.2, 0.7)
    expected = Interval(0.75, 0.73, 0.77, 0.01, 7)
    slices = SliceReference("product", "categorical", (), ("coat", "hat"), (expected,) * 5)
    holdout = {"auc": 0.75, "rows": 20_000.0, "slices": [slices.as_dict()]}
    return json.dumps({"holdout": holdout, "calibration": curve.as_dict() if calibrated else None}, allow_nan=False)


def test_a_product_that_turned_is_named_and_the_estimate_is_held_against_the_truth(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "read_bundle_file", lambda *_: as_at_the_gate())
    of_a_week(lake, flipped="hat")
    found = run(monitor.measure, "shop", NOW, Model("1", "file:///1"))
    assert {(s.name, s.status) for s in found.performance.slices if s.rows} == {
        ("hat", Status.FAIL),
        ("coat", Status.PASS),
    }
    assert "worse than expected on product hat" in found.performance.verdict.reason
    assert found.check.verdict.status is Status.FAIL
    assert "a sign of concept drift" in found.performance.verdict.reason
    # Too few wait to estimate from; the hundred whose horizon has passed are not among them.
    assert found.labels == {"labelled_rows": 1_800, "waiting_rows": 200, "expired_rows": 100, "late_labels": 0}
    assert found.estimate.rows == 200
    assert found.estimate.verdict.status is Status.INCONCLUSIVE


def test_the_estimate_of_what_waits_is_what_the_scores_are_worth(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "read_bundle_file", lambda *_: as_at_the_gate())
    few = PIPELINE.performance.model_copy(update={"min_rows": 100})
    changed = SimpleNamespace(lake=lake, spec=PIPELINE.model_copy(update={"performance": few}))
    monkeypatch.setattr(monitor, "open_context", lambda _: changed)
    of_a_week(lake, flipped="none")
    found = run(monitor.measure, "shop", NOW, Model("1", "file:///1"))
    waiting = lake.read(PREDICTIONS)["score"][-200:]
    assert found.estimate.intervals["positive_rate"].value == pytest.approx(waiting.mean())
    assert found.estimate.verdict.status is Status.PASS
    assert found.check.verdict.status is Status.PASS
    assert found.performance.verdict.status is Status.PASS
    assert "warning" not in found.performance.verdict.reason


def test_a_champion_from_before_calibration_is_measured_and_not_estimated(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "read_bundle_file", lambda *_: as_at_the_gate(calibrated=False))
    of_a_week(lake, flipped="none")
    found = run(monitor.measure, "shop", NOW, Model("1", "file:///1"))
    assert found.performance.verdict.status is Status.PASS
    assert found.estimate.verdict.status is found.check.verdict.status is Status.INCONCLUSIVE


def test_without_predictions_performance_is_inconclusive(lake: Lake) -> None:
    found = run(monitor.measure, "shop", NOW, Model("1", "file:///1"))
    assert found.performance.verdict.status is Status.INCONCLUSIVE
    assert found.labels == {"labelled_rows": 0, "waiting_rows": 0, "expired_rows": 0, "late_labels": 0}


def test_labels_that_came_too_late_do_not_judge_the_champion(lake: Lake) -> None:
    settled(lake, np.arange(ROWS) % 3 == 0)
    for days_before in (4, 0.5):  # settled after three days, of which two count; and before the second was made
        predicted(lake, "1", np.full(ROWS, 0.5), NOW, NOW - timedelta(days=days_before))
    found = run(monitor.measure, "shop", NOW, Model("1", "file:///1"))
    assert found.performance.labelled_rows == 0
    assert found.labels == {"labelled_rows": 0, "waiting_rows": ROWS, "expired_rows": ROWS, "late_labels": ROWS}


def test_the_sentence_on_labels_tells_each_count_and_asks_only_when_labels_were_late() -> None:
    counts = {"labelled_rows": 700, "waiting_rows": 20, "expired_rows": 3, "late_labels": 0}
    told = tell_labels(counts, 36 * 3_600)
    assert all(part in told for part in ("700 ", "20 ", "3 ", "1 day, 12:00:00"))
    assert "horizon" not in told
    assert "2 labels came later" in tell_labels({**counts, "late_labels": 2}, 60)


@pytest.mark.parametrize(
    ("before", "now", "is_news"),
    [
        (None, "FAIL", True),
        (None, "ERROR", True),
        (None, "INCONCLUSIVE", False),
        ("PASS", "ERROR", True),
        ("INCONCLUSIVE", "FAIL", True),
        ("ERROR", "ERROR", False),
        ("ERROR", "FAIL", True),
        ("FAIL", "FAIL", False),
        ("FAIL", "PASS", False),
    ],
)
def test_what_ended_worse_than_the_last_time_is_news(lake: Lake, before: str | None, now: str, is_news: bool) -> None:
    if before:
        record_verdicts(lake, {"drift": Verdict(Status[before], "then")}, NOW, NOW)
    verdicts = {"data": Verdict(Status.PASS, "fine"), "drift": Verdict(Status[now], "now")}
    assert run(monitor.find_news, "shop", verdicts) == (("drift",) if is_news else ())


class Killed(BaseException):
    """What nothing catches, like a kill."""


def given(monkeypatch: pytest.MonkeyPatch, **stages: Any) -> list[tuple[str, dict[str, Any]]]:
    """Let the stages answer as told, everything else be fine; the answer fills with the events, and the alerts sent."""
    told: list[tuple[str, dict[str, Any]]] = []

    def answer(value: Any) -> Any:
        async def stage(*_: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return stage

    async def send(_: str, __: Any, findings: Any, *___: Any) -> Any:
        told.append(("alerts", {finding.check: finding.headline for finding in findings}))
        return SimpleNamespace(told="nothing was sent", warnings=())

    judged = SimpleNamespace(verdict=Verdict(Status.PASS, "fine"), valid=pl.DataFrame())
    nothing = SimpleNamespace(verdict=Verdict(Status.PASS, "as good as ever"))
    answers = {
        "validate_window": judged,
        "find_drift": SimpleNamespace(drift=DriftVerdict(Verdict(Status.FAIL, "psi 0.4"), ())),
        "measure": monitor.Measured(nothing, monitor.Outcomes(pl.DataFrame(), 0, 0, 0, 0).counts),
        "show_drift": None,
        "document": None,
        "record_metrics": (),
        "publish": None,
        "alert_targets": (),
        **stages,
    }
    for name, value in answers.items():
        monkeypatch.setattr(monitor, name, answer(value))
    for module in (monitor, stage):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger(__name__))
    monkeypatch.setattr(monitor, "champion", lambda _: Model("1", "file:///1"))
    monkeypatch.setattr(monitor, "announce", lambda event, _, payload: told.append((event, payload)))
    monkeypatch.setattr(monitor, "send_alerts", send)
    for name in ("find_news", "find_silent", "keep_verdicts", "decide_retrain"):
        if name not in stages:
            monkeypatch.setattr(monitor, name, getattr(monitor, name).fn)
    return told


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A champion that may well be retrained."""
    known = ChampionHistory(NOW - timedelta(days=5), None, 10**6, rollout_in_flight=False)
    monkeypatch.setattr(monitor, "champion_history", lambda *_: known)


CHECKS = {"validate_window": "data", "find_drift": "drift", "measure": "performance"}


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("broken", CHECKS)
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (StateError("a file of the lake cannot be read; restore it"), "a file of the lake cannot be read; restore it"),
        (KeyError("price"), "it ended in KeyError: 'price'"),
    ],
)
def test_a_check_that_cannot_run_is_told_with_what_the_others_found_and_the_run_fails(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception, sentence: str
) -> None:
    bad = SimpleNamespace(verdict=Verdict(Status.FAIL, "900 of 1000 rows fail"), valid=pl.DataFrame())
    told = given(monkeypatch, **{"validate_window": bad, broken: error})
    with pytest.raises(StageError, match=re.escape(f"{CHECKS[broken]} ({sentence})")):
        run(monitor.monitor, "shop", NOW)
    events = [name for name, _ in told]
    # The other checks found bad data and drift; performance was fine.
    fail = {"data": "FAIL", "drift": "FAIL", "performance": "PASS", CHECKS[broken]: "ERROR"}
    assert last_statuses(lake) == fail
    assert events == [*(monitor.EVENTS[check] for check, status in fail.items() if status != "PASS"), "alerts"]
    assert told[-1][1][CHECKS[broken]] == f"the check could not run: {sentence}"
    assert told[-1][1].keys() == {check for check, status in fail.items() if status != "PASS"}


@pytest.mark.usefixtures("history")
def test_a_check_that_stays_silent_for_longer_than_its_windows_is_told(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Verdict(Status.INCONCLUSIVE, "no rows")
    told = given(monkeypatch, find_drift=SimpleNamespace(drift=DriftVerdict(nothing, ())))
    windows = timedelta(seconds=PIPELINE.drift.watched_s)
    for at in (NOW, NOW + windows, NOW + windows + timedelta(hours=1)):
        run(monitor.monitor, "shop", at)
    *before, last = [alerts for what, alerts in told if what == "alerts"]
    assert before == [{}, {}]
    assert last == {"drift": f"drift has not been judged since {NOW:%Y-%m-%d %H:%M} UTC: no rows"}


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("broken", ["find_drift", "measure"])
@pytest.mark.parametrize("other", [Status.PASS, Status.FAIL])
def test_a_retrain_is_asked_for_by_the_check_that_ran_and_not_by_the_one_that_could_not(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, broken: str, other: Status
) -> None:
    found = Verdict(other, "so it is")
    none = monitor.Outcomes(pl.DataFrame(), 0, 0, 0, 0).counts
    checks = {
        "find_drift": SimpleNamespace(drift=DriftVerdict(found, ())),
        "measure": monitor.Measured(SimpleNamespace(verdict=found), none),
        broken: StateError("the file is damaged"),
    }
    told = given(monkeypatch, **checks)
    with pytest.raises(StageError):
        run(monitor.monitor, "shop", NOW)
    assert ("perennial.retrain.needed" in [name for name, _ in told]) is (other is Status.FAIL)


def test_where_labels_cannot_be_read_people_are_told_and_nothing_is_retrained(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = StateError("the labels cannot be read")
    told = given(monkeypatch, measure=damaged, decide_retrain=damaged)
    with pytest.raises(StageError, match="whether one pays could not be decided"):
        run(monitor.monitor, "shop", NOW)
    assert [name for name, _ in told] == ["perennial.drift.detected", "perennial.performance.degraded", "alerts"]
    assert last_statuses(lake) == {"data": "PASS", "drift": "FAIL", "performance": "ERROR"}


def test_a_run_that_is_cancelled_within_a_check_ends_there(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    told = given(monkeypatch, find_drift=CancelledRun("by a person"))
    with pytest.raises(CancelledRun):
        run(monitor.monitor, "shop", NOW)
    assert told == []
    assert last_statuses(lake) == {}


def test_without_a_champion_there_is_nothing_to_monitor(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    monkeypatch.setattr(monitor, "champion", lambda _: None)
    with pytest.raises(UsageError, match="no champion"):
        run(monitor.monitor, "shop", NOW)


@pytest.mark.parametrize("killed_at", ["perennial.drift.detected", "perennial.retrain.needed", "alerts"])
def test_a_run_killed_while_it_tells_leaves_the_news_for_the_next(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    told: list[str] = []

    def announce(event: str, *_: Any) -> None:
        if event == killed_at and not told.count("killed"):
            told.append("killed")
            raise Killed
        told.append(event)

    async def send(*_: Any) -> Any:
        announce("alerts")
        return SimpleNamespace(told="nothing was sent", warnings=())

    given(monkeypatch, decide_retrain=RetrainDecision(True, "retrain: drift", ("drift",), 0.0, 1.0, 9, True))
    monkeypatch.setattr(monitor, "announce", announce)
    monkeypatch.setattr(monitor, "send_alerts", send)
    with pytest.raises(Killed):
        run(monitor.monitor, "shop", NOW)
    assert last_statuses(lake) == {}
    assert run(monitor.monitor, "shop", NOW + timedelta(hours=1)).alerts == ("drift",)
    assert told[-3:] == ["perennial.drift.detected", "perennial.retrain.needed", "alerts"]
    assert last_statuses(lake)["drift"] == "FAIL"
    assert run(monitor.monitor, "shop", NOW + timedelta(hours=2)).alerts == ()


def test_what_could_not_be_checked_is_shown_with_what_could(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    async def show(markdown: str, **_: Any) -> None:
        shown.append(markdown)

    monkeypatch.setattr(monitor, "acreate_markdown_artifact", show)
    monkeypatch.setattr(monitor, "get_run_logger", lambda: logging.getLogger(__name__))
    verdicts = {"data": Verdict(Status.FAIL, "900 rows fail"), "drift": Verdict(Status.ERROR, "no reference")}
    decision = RetrainDecision(False, "no retrain: cooldown", (), 0.0, 1.0, 9, True)
    asyncio.run(monitor.publish("shop", verdicts, None, None, decision, {"data": "http://mlflow/docs"}))
    assert shown[0].splitlines() == [
        "# shop",
        "",
        "- **data: FAIL**. 900 rows fail ([look](http://mlflow/docs))",
        "- **drift: ERROR**. no reference",
        "",
        "**Decision.** no retrain: cooldown",
        "",
        "**Labels.** They could not be counted.",
    ]


@pytest.mark.parametrize(
    ("moved", "version", "link", "hours", "is_drawn"),
    [
        ({"a"}, "1", "http://mlflow/1", 1, False),
        ({"a", "b"}, "1", "http://mlflow/1", 1, False),
        ({"a", "c"}, "1", "http://mlflow/1", 1, True),
        ({"a"}, "2", "http://mlflow/1", 1, True),
        ({"a"}, "1", "file:///home/drift.html", 1, True),
        ({"a"}, "1", "http://mlflow/1", 24, True),
        (set(), "1", "http://mlflow/1", 1, None),
    ],
)
def test_a_report_is_drawn_anew_when_the_last_one_does_not_show_what_moved(
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    moved: set[str],
    version: str,
    link: str,
    hours: int,
    is_drawn: bool | None,
) -> None:
    verdict = Verdict(Status.FAIL, "moved")
    record_verdicts(lake, {"drift": verdict}, NOW, NOW, KeptReport(frozenset("ab"), link, "1", NOW))
    later = NOW + timedelta(hours=hours)
    drawn = SimpleNamespace(link="http://mlflow/new", note="")

    async def answer(*_: Any) -> Any:
        return drawn

    for name in ("read_rows", "write_report"):
        monkeypatch.setattr(monitor, name, answer)
    monkeypatch.setattr(monitor, "read_last_report", monitor.read_last_report.fn)
    features = tuple(FeatureDrift(name, 0.3, 0.0, 0.0, Status.FAIL, "moved") for name in sorted(moved))
    check = SimpleNamespace(drift=DriftVerdict(verdict, features))
    found = asyncio.run(monitor.show_drift("shop", PIPELINE, check, Model(version, "file:///1"), later))
    if is_drawn is None:
        assert found is None
    elif is_drawn:
        assert found == KeptReport(frozenset(moved), "http://mlflow/new", version, later)
    else:
        assert found == KeptReport(frozenset("ab"), link, "1", NOW)
