from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.events import events_schema
from features.labels import PREDICTIONS
from features.lake import Lake
from features.store import historical
from perennial.settings import Settings
from pipelines.spec import EventField, EventSpec, Feature, LabelSpec, PipelineSpec, ScoredSpec
from serving.batch import keep_predictions, score, unscored

T0 = datetime(2026, 1, 1, tzinfo=UTC)
VISIT = EventSpec(
    topic="shop.visit.v1",
    fields=(
        EventField(name="customer", type="string", nullable=True),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="basket_eur", type="float"),
        EventField(name="bought", type="bool"),
    ),
    event_timestamp="event_timestamp",
    event_id=("customer", "event_timestamp"),
    partition_key="customer",
)
SPEC = PipelineSpec(
    name="shop",
    description="Will this visitor buy? Asked at each visit.",
    events=(VISIT,),
    scored=ScoredSpec(topic=VISIT.topic, key="customer"),
    label=LabelSpec(topic=VISIT.topic, key="customer", value=lambda f: f["bought"], horizon_s=10 * 3_600),
    views=(),
    request_features=lambda f: f.select("basket_eur"),
    features=(Feature(name="basket_eur", kind="numeric"),),
    contract=(),
    replay=lambda start, end: {},
)
Visit = tuple[str | None, float]


class Share:
    """A model: the basket's share of 100 EUR."""

    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        return frame["basket_eur"].to_numpy() / 100


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def lake(where: Settings) -> Lake:
    return Lake(where, SPEC.name)


def hours(count: float) -> datetime:
    return T0 + timedelta(hours=count)


def visit(lake: Lake, *visits: Visit, marked: list[bool | None] | None = None) -> None:
    """(customer, hours after T0); each basket is worth its place in the lake."""
    before = lake.rows(VISIT.table)
    frame = pl.DataFrame(
        {
            "customer": [v[0] for v in visits],
            "event_timestamp": [hours(v[1]) for v in visits],
            "basket_eur": [float(before + i) for i in range(len(visits))],
            "bought": [True] * len(visits),
            "kafka_partition": [0] * len(visits),
            "kafka_offset": range(before, before + len(visits)),
            "created_timestamp": [hours(1_000 + before)] * len(visits),
            "extra": [None] * len(visits),
        },
        schema=events_schema(VISIT),
    )
    lake.append(VISIT.table, frame if marked is None else frame.with_columns(is_duplicate=pl.Series(marked)))


def asked(lake: Lake, as_of: float) -> list[Visit]:
    rows = unscored(lake, SPEC, hours(as_of)).select("customer", "event_timestamp").rows()
    return [(customer, (at - T0) / timedelta(hours=1)) for customer, at in rows]


def run(lake: Lake, where: Settings, as_of: float) -> int:
    """A run of scoring as the flow does it."""
    rows = historical(SPEC, where, unscored(lake, SPEC, hours(as_of)), {})
    made = score(SPEC, rows, Share(), "1", hours(as_of))
    return keep_predictions(lake, made)


def test_a_key_that_is_asked_about_again_is_scored_again(lake: Lake, where: Settings) -> None:
    visit(lake, ("ann", 1), ("bob", 1))
    assert run(lake, where, 2) == 2
    assert asked(lake, 3) == []
    visit(lake, ("ann", 3), ("ann", 4))
    assert asked(lake, 5) == [("ann", 3), ("ann", 4)]
    assert run(lake, where, 5) == 2
    assert asked(lake, 5) == []
    made = lake.read(PREDICTIONS).sort("event_timestamp", "entity_key")
    # Each basket is worth its place: 0 and 1, then 2 and 3.
    assert made.select("entity_key", "score").rows() == [("ann", 0.0), ("bob", 0.01), ("ann", 0.02), ("ann", 0.03)]


def test_an_event_that_came_twice_is_scored_once_as_it_first_came(lake: Lake, where: Settings) -> None:
    visit(lake, ("ann", 1))
    visit(lake, ("ann", 1), ("ann", 1))
    assert run(lake, where, 2) == 1
    visit(lake, ("ann", 1))
    assert run(lake, where, 3) == 0
    assert lake.read(PREDICTIONS)["score"].to_list() == [0.0]


def test_marked_duplicates_are_not_scored_and_rows_without_a_mark_are(lake: Lake) -> None:
    visit(lake, ("of an older version", 1))
    visit(lake, ("ann", 2), ("ann", 3), ("bob", 4), marked=[False, True, None])
    assert asked(lake, 5) == [("of an older version", 1), ("ann", 2), ("bob", 4)]


def test_each_event_without_a_key_is_scored_and_only_once(lake: Lake, where: Settings) -> None:
    visit(lake, (None, 1), (None, 1), (None, 2))
    assert run(lake, where, 3) == 3
    assert run(lake, where, 4) == 0


def test_what_a_label_could_no_longer_judge_is_not_scored(lake: Lake) -> None:
    visit(lake, ("over", 1.999), ("just", 2), ("now", 11.999), ("not yet", 12))
    # The horizon is 10 hours: the label of the visit of hour 2 may still come at hour 12.
    assert asked(lake, 12) == [("just", 2), ("now", 11.999)]
