"""Which predictions stand for a model, and which rows are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.labels import PREDICTIONS
from features.lake import Lake
from flows import drift
from perennial.errors import StateError
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from rollout.ledger import Entry, Ledger, Model

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NEW = PIPELINE.features[0].name


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # The score of version 2 is told from any other, and needs all of its features.
    def predict(rows: pl.DataFrame) -> np.ndarray:
        assert rows.select(PIPELINE.feature_names).width == len(PIPELINE.feature_names)
        return np.full(rows.height, 0.75)

    knows = {"file:///1": [n for n in PIPELINE.feature_names if n != NEW]}

    def bundle(uri: str) -> SimpleNamespace:
        if uri == "file:///gone":
            raise StateError("no bundle.json")
        return SimpleNamespace(predict=predict, feature_names=tuple(knows.get(uri, PIPELINE.feature_names)))

    monkeypatch.setattr(drift, "predictor", bundle)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    champions = {"0": "file:///gone", "1": "file:///1", "1b": "file:///1b", "2": "file:///2"}
    for sequence, (version, uri) in enumerate(champions.items(), 1):
        ledger.append(
            Entry(PIPELINE.name, sequence, BEGIN, "promote", Model(version, uri), None, 0.0, "it is better", None)
        )
    yield SimpleNamespace(lake=Lake(Settings(home=tmp_path), "shop"), spec=PIPELINE, ledger=ledger)
    ledger.close()


def predicted(context: Any, version: str, hour: int, *without: str, void: str | None = None) -> None:
    rows = {
        f.name: [1.0, 2.0] if f.kind == "numeric" else ["a", "b"] for f in PIPELINE.features if f.name not in without
    }
    if void:
        rows[void] = [None, None]
    at = BEGIN + timedelta(hours=hour)
    frame = pl.DataFrame(
        {
            "entity_key": [f"{hour}-0", f"{hour}-1"],
            "event_timestamp": at,
            **rows,
            "score": 0.5,
            "model_version": version,
        },
        schema_overrides={f.name: pl.Float64 if f.kind == "numeric" else pl.String for f in PIPELINE.features},
    )
    when = pl.Datetime("us", "UTC")
    context.lake.append(
        PREDICTIONS,
        frame.with_columns(pl.col("event_timestamp").cast(when), created_timestamp=pl.lit(at).cast(when)),
    )


def hours(rows: pl.DataFrame) -> list[int]:
    return sorted({int((t - BEGIN).total_seconds() // 3600) for t in rows["event_timestamp"]})


def test_predictions_of_another_model_get_the_scores_of_this_one(context: Any) -> None:
    predicted(context, "1b", 1)
    predicted(context, "2", 2)
    rows = drift.scored_by(context, Model("2", "file:///2"), BEGIN, BEGIN + DAY).sort("event_timestamp")
    assert rows["score"].to_list() == [0.75, 0.75, 0.5, 0.5]


def test_predictions_of_a_model_that_did_not_know_a_feature_do_not_stand_for_one_that_does(context: Any) -> None:
    predicted(context, "1", 1, NEW)
    # Nobody has the column yet: no error, and nothing to judge by.
    assert drift.scored_by(context, Model("2", "file:///2"), BEGIN, BEGIN + DAY).is_empty()
    predicted(context, "2", 2)
    assert hours(drift.scored_by(context, Model("2", "file:///2"), BEGIN, BEGIN + DAY)) == [2]


@pytest.mark.parametrize("version", ["1b", "0", "never released"])
def test_a_column_that_vanished_while_a_model_knew_it_is_no_reason_to_look_away(context: Any, version: str) -> None:
    predicted(context, version, 1, void=NEW)
    predicted(context, "2", 2)
    rows = drift.scored_by(context, Model("2", "file:///2"), BEGIN, BEGIN + DAY)
    assert hours(rows) == [1, 2]
    assert rows[NEW].null_count() == 2


def test_a_column_that_vanished_for_every_model_is_seen_as_vanished(context: Any) -> None:
    predicted(context, "1b", 1, void=NEW)
    predicted(context, "2", 2, void=NEW)
    rows = drift.scored_by(context, Model("2", "file:///2"), BEGIN, BEGIN + DAY)
    assert hours(rows) == [1, 2]
    assert rows[NEW].null_count() == 4
