from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from features.consumer import Batch
from features.events import Records, encode
from features.ingest import refresh_view
from features.labels import LABEL
from features.lake import Lake
from features.topic_stream import TopicStream
from perennial.errors import StateError, UsageError
from perennial.scaffold import init_pipeline
from perennial.settings import Settings
from perennial.template.events import DAYS, FIRST_DAY, SHIFTED_FROM
from perennial.template.pipeline import PIPELINE
from pipelines.spec import add_pipelines_dir, load_pipeline, pipeline_names
from training.dataset import TrainingSet, build_training_set
from training.fit import fit
from validation.drift import detect_drift
from validation.profile import build_reference, profile_by_hour
from validation.verdict import Status
from validation.windows import windows_before

LAST_DAY = FIRST_DAY + timedelta(days=DAYS)


def test_a_new_pipeline_is_a_folder_that_loads_under_its_own_name(tmp_path: Path) -> None:
    folder = init_pipeline("payments_2", tmp_path / "mine")
    assert folder == tmp_path / "mine" / "payments_2"
    assert sorted(p.name for p in folder.iterdir()) == [
        "__init__.py",
        "contract.py",
        "events.py",
        "features.py",
        "pipeline.py",
    ]
    assert not any("pipeline_name" in p.read_text() for p in folder.iterdir())
    add_pipelines_dir(tmp_path / "mine")
    assert "payments_2" in set(pipeline_names())
    spec = load_pipeline("payments_2")
    assert spec.name == "payments_2"
    assert [e.topic for e in spec.events] == [
        "payments_2.order_placed.v1",
        "payments_2.page_viewed.v1",
        "payments_2.order_settled.v1",
    ]


def test_nothing_but_the_new_folder_is_left(tmp_path: Path) -> None:
    init_pipeline("shop", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


@pytest.mark.parametrize(
    "name", ["", "Shop", "2shop", "shop-two", "my shop", "../shop", "shöp", "_shop", "shop.v1", "s" * 41, "shop\n"]
)
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a pipeline; use up to 40 lower case letters"):
        init_pipeline(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["class", "lambda", "spec", "pipeline_name"])
def test_a_name_that_means_something_else_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"'{name}' means something else"):
        init_pipeline(name, tmp_path)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.py").write_text("x = 1")
    with pytest.raises(UsageError, match="shop is already there"):
        init_pipeline("shop", tmp_path)
    assert (tmp_path / "shop" / "mine.py").read_text() == "x = 1"


def test_the_name_of_another_pipeline_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already a pipeline 'flights'"):
        init_pipeline("flights", tmp_path)


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        init_pipeline("shop", tmp_path / "file")


def test_a_write_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def disk_full(self: Path, *arguments: object, **named: object) -> int:
        if len(written) == 2:
            raise OSError(28, os.strerror(28))
        written.append(self)
        return write(self, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(StateError, match="No space left on device"):
        init_pipeline("shop", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_history_is_the_same_in_every_process() -> None:
    show = """
from datetime import UTC, datetime
from hashlib import sha256
from perennial.template.pipeline import PIPELINE
history = PIPELINE.replay(datetime(2024, 1, 9, tzinfo=UTC), datetime(2024, 1, 10, tzinfo=UTC))
print(*(sha256(frame.write_csv().encode()).hexdigest() for frame in history.values()))
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", show],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_history_outside_its_weeks_is_empty() -> None:
    ever = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    whole = PIPELINE.replay(*ever)
    assert whole.keys() == {e.topic for e in PIPELINE.events}
    assert whole[PIPELINE.scored.topic].height == 8_400
    assert all(f.is_empty() for f in PIPELINE.replay(ever[0], FIRST_DAY - timedelta(days=1)).values())
    assert all(f.is_empty() for f in PIPELINE.replay(LAST_DAY + timedelta(days=1), ever[1]).values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Every labelled feature row of the six weeks."""
    settings = Settings(home=tmp_path_factory.mktemp("six_weeks"))
    lake = Lake(settings, PIPELINE.name)
    end = LAST_DAY + timedelta(days=2)
    history = PIPELINE.replay(FIRST_DAY - timedelta(days=1), end)
    for event in PIPELINE.events:
        records = Records.of((0, i, None, value) for i, value in enumerate(encode(history[event.topic], event)))
        stream = TopicStream(settings, lake, event)
        stream.take(Batch(event.topic, records, {0: len(records)}), end)
        stream.commit()
    for view in PIPELINE.views:
        refresh_view(settings, lake, PIPELINE, view)
    found = build_training_set(PIPELINE, settings, lake, end)
    return pl.concat([found.train, found.holdout])


def between(rows: pl.DataFrame, start: int, end: int) -> pl.DataFrame:
    """Rows of days [start, end) of the history."""
    first, last = FIRST_DAY + timedelta(days=start), FIRST_DAY + timedelta(days=end)
    return rows.filter(pl.col("event_timestamp").is_between(first, last, closed="left"))


def test_a_model_learns_from_the_example_and_the_streamed_features_pay(rows: pl.DataFrame) -> None:
    train, test = between(rows, 1, 28), between(rows, 28, 35)
    labels = test.get_column(LABEL).to_numpy()
    training_set = TrainingSet(PIPELINE.name, LAST_DAY, PIPELINE.features, train, test, {})
    auc = roc_auc_score(labels, fit(training_set, PIPELINE.model, 7, None).predict(test))
    streamed = {a.name for v in PIPELINE.views for a in v.aggregates}
    plain = replace(training_set, features=tuple(f for f in PIPELINE.features if f.name not in streamed))
    auc_without = roc_auc_score(labels, fit(plain, PIPELINE.model, 7, None).predict(test))
    assert auc > 0.7
    assert auc > auc_without + 0.03


def test_the_planted_shift_is_drift_and_the_weeks_before_are_not(rows: pl.DataFrame) -> None:
    policy = PIPELINE.drift
    reference = build_reference(
        between(rows, 1, 28), PIPELINE.features, policy, extra=(), timestamp_column="event_timestamp"
    )
    by_hour = profile_by_hour(rows, reference, "event_timestamp")
    assert (SHIFTED_FROM - FIRST_DAY).days == 35
    for day in range(34, 36):
        before = detect_drift(
            reference, windows_before(by_hour, reference, FIRST_DAY + timedelta(days=day), policy), policy
        )
        assert before.verdict.status is Status.PASS, before.verdict.reason
    until = SHIFTED_FROM + timedelta(seconds=policy.watched_s)
    after = detect_drift(reference, windows_before(by_hour, reference, until, policy), policy)
    assert after.verdict.status is Status.FAIL, after.verdict.reason
    assert {"price_eur", "product"} <= {f.feature for f in after.drifted}
    # What the event tells moves on the day; a rate over the last three days follows.
    since = {f.feature: f.since for f in after.drifted}
    for feature in ("price_eur", "product"):
        assert abs((since[feature] or FIRST_DAY) - SHIFTED_FROM) <= timedelta(days=1)


def test_some_orders_are_never_settled(rows: pl.DataFrame) -> None:
    assert 0.96 < rows.height / 8_400 < 0.98
    assert np.isclose(rows["label"].mean(), 0.37, atol=0.05)
