from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.events import events_schema
from features.labels import PREDICTIONS, labels, outcomes, predictions
from features.lake import Lake
from perennial.settings import Settings
from perennial.template.events import SETTLED
from perennial.template.pipeline import PIPELINE

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HORIZON = timedelta(days=2)


def hours(count: float) -> datetime:
    return T0 + timedelta(hours=count)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


def settle(lake: Lake, *rows: tuple[str, float, bool]) -> None:
    """(order, hours after T0, sent back), taken in in this order."""
    before = lake.rows(SETTLED.table)
    frame = pl.DataFrame(
        {
            "order_id": [r[0] for r in rows],
            "event_timestamp": [hours(r[1]) for r in rows],
            "product": ["hat"] * len(rows),
            "sent_back": [r[2] for r in rows],
            "kafka_partition": [0] * len(rows),
            "kafka_offset": list(range(before, before + len(rows))),
            "created_timestamp": [T0 + timedelta(days=9)] * len(rows),
            "extra": [None] * len(rows),
        },
        schema=events_schema(SETTLED),
    )
    lake.append(SETTLED.table, frame)


def predict(lake: Lake, *rows: tuple[str, float]) -> None:
    frame = pl.DataFrame(
        {
            "entity_key": [r[0] for r in rows],
            "event_timestamp": [hours(r[1]) for r in rows],
            "score": [0.5] * len(rows),
            "created_timestamp": [T0 + timedelta(days=9)] * len(rows),
        },
        schema_overrides={n: pl.Datetime("us", "UTC") for n in ("event_timestamp", "created_timestamp")},
    )
    lake.append(PREDICTIONS, frame)


def known(lake: Lake, as_of: float, since: float | None = None) -> dict[str, bool]:
    found = labels(lake, PIPELINE, hours(since) if since is not None else None, hours(as_of))
    assert found["entity_key"].is_unique().all()
    return dict(found.select("entity_key", "label").iter_rows())


def test_the_first_label_of_a_key_counts_whatever_came_in_first(lake: Lake) -> None:
    settle(lake, ("a", 5, False), ("b", 1, True))
    settle(lake, ("a", 3, True), ("b", 2, False))
    assert known(lake, 10) == {"a": True, "b": True}


def test_of_two_labels_at_once_the_first_on_the_topic_counts(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("a", 3, False))
    assert known(lake, 10) == {"a": True}


def test_a_label_is_known_only_after_its_moment(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("b", 4, True))
    assert known(lake, 3) == {}
    assert known(lake, 4) == {"a": True}
    assert known(lake, 4.001) == {"a": True, "b": True}
    assert known(lake, 10, since=4) == {"b": True}


def test_a_label_that_is_undefined_is_none(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("b", 4, False))
    undefined = PIPELINE.label.model_copy(update={"value": lambda f: f["sent_back"].replace(False, None)})
    found = labels(lake, PIPELINE.model_copy(update={"label": undefined}), None, hours(10))
    assert found["entity_key"].to_list() == ["a"]


def test_outcomes_tell_labelled_waiting_and_expired_apart(lake: Lake) -> None:
    predict(lake, ("labelled", 0), ("expired", 0), ("due", 2), ("waiting", 2.001), ("later", 50))
    settle(lake, ("labelled", 20, True), ("waiting", 51, True), ("stranger", 1, True))
    found = outcomes(lake, PIPELINE, T0, hours(50))
    assert found.frame.select("entity_key", "label").rows() == [
        ("labelled", True),
        ("expired", None),
        ("due", None),
        ("waiting", None),
    ]
    # At hour 50 the horizon of 48 hours has passed for predictions of up to hour 2.
    assert (found.labelled_rows, found.waiting_rows, found.expired_rows) == (1, 1, 2)


def test_a_window_of_outcomes_leaves_earlier_predictions_out(lake: Lake) -> None:
    predict(lake, ("a", 0), ("b", 1))
    settle(lake, ("a", 5, True), ("b", 6, False))
    found = outcomes(lake, PIPELINE, hours(1), hours(10))
    assert found.frame.select("entity_key", "label").rows() == [("b", False)]


def test_a_label_that_came_after_a_snapshot_is_not_in_it(lake: Lake) -> None:
    settle(lake, ("a", 3, True))
    before = lake.snapshot_id(SETTLED.table)
    settle(lake, ("a", 2, False), ("b", 4, True))
    assert labels(lake, PIPELINE, None, hours(10), before)["entity_key"].to_list() == ["a"]
    assert labels(lake, PIPELINE, None, hours(10), before)["label"].to_list() == [True]


def test_of_two_predictions_for_a_key_the_first_that_was_made_counts(lake: Lake) -> None:
    def made(at: float, *rows: tuple[str | None, float]) -> None:
        frame = pl.DataFrame(
            {
                "entity_key": [r[0] for r in rows],
                "event_timestamp": [hours(1)] * len(rows),
                "score": [r[1] for r in rows],
                "created_timestamp": [hours(at)] * len(rows),
            },
            schema_overrides={n: pl.Datetime("us", "UTC") for n in ("event_timestamp", "created_timestamp")},
        )
        lake.append(PREDICTIONS, frame)

    made(3, ("a", 0.3), (None, 0.1))
    made(2, ("a", 0.2), ("b", 0.4), (None, 0.1))
    settle(lake, ("a", 5, True))
    found = predictions(lake, T0, hours(10))
    assert sorted(found.drop_nulls().select("entity_key", "score").rows()) == [("a", 0.2), ("b", 0.4)]
    # What has no key is nobody's duplicate: the contract must see it.
    assert found["entity_key"].null_count() == 2
    known = outcomes(lake, PIPELINE, T0, hours(10))
    assert known.frame.filter(pl.col("entity_key") == "a").select("score", "label").rows() == [(0.2, True)]
    assert known.labelled_rows == 1
