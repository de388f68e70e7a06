"""What counts once a topic's lateness or event id was changed: what the stream counted, in a backfill, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from toys_online import ASKED, T0, VIEW, toys

from features.backfill import backfill
from features.built import warnings
from features.consumer import Batch
from features.ingest import refresh_view
from features.lake import Lake
from features.records import Records
from features.store import view_table
from features.topic_stream import TopicStream
from perennial.settings import Settings
from pipelines.spec import Aggregate, PipelineSpec

HOUR_S = 3_600
COUNT = Aggregate(name="asked_10h", field="price", function="count", window_s=10 * HOUR_S)
# A toy, the hour it is asked for, and the shop.
Asked = tuple[str, float, str]


def spec_of(**changed: Any) -> PipelineSpec:
    view = VIEW.model_copy(update={"aggregates": (COUNT,)})
    return toys().model_copy(update={"events": (ASKED.model_copy(update=changed),), "views": (view,)})


STRICT, MILD = spec_of(lateness_s=60), spec_of(lateness_s=100 * HOUR_S)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def take(settings: Settings, spec: PipelineSpec, *asked: Asked, partition: int = 0) -> None:
    """Events take their way into the lake and its features, as those of one partition."""
    lake = Lake(settings, spec.name)
    stream = TopicStream(settings, lake, spec.events[0])
    start = stream.positions.get(partition, 0)
    told = [
        {"toy": toy, "event_timestamp": (T0 + timedelta(hours=at)).isoformat(), "shop": shop, "price": 1, "sold": True}
        for toy, at, shop in asked
    ]
    records = Records.of([(partition, start + i, b"k", json.dumps(of).encode()) for i, of in enumerate(told)])
    stream.take(Batch(ASKED.topic, records, {partition: start + len(asked)}), datetime.now(UTC))
    stream.commit()
    refresh_view(settings, lake, spec, spec.views[0])


def counts(settings: Settings, spec: PipelineSpec) -> list[tuple[str, float, float]]:
    """By shop and hour, what the newest row says."""
    rows = Lake(settings, spec.name).read(view_table(spec.views[0])).sort("created_timestamp")
    newest = rows.unique(["shop", "event_timestamp"], keep="last").sort("shop", "event_timestamp")
    return [
        (shop, (at - T0) / timedelta(hours=1), value)
        for shop, at, value in newest.select("shop", "event_timestamp", COUNT.name).iter_rows()
    ]


def assert_a_backfill_leaves(
    expected: Sequence[tuple[str, float, float]], settings: Settings, spec: PipelineSpec
) -> None:
    assert counts(settings, spec) == expected
    assert warnings(Lake(settings, spec.name), spec) == ()  # nothing is promised that a backfill would not do
    done = backfill(settings, Lake(settings, spec.name), spec, spec.views[0])
    assert done.rows_after == len(expected)
    assert counts(settings, spec) == expected


def test_copies_that_both_came_too_late_do_not_count_twice_once_there_is_more_lateness(settings: Settings) -> None:
    take(settings, STRICT, ("one", 3, "a"), ("late", 2, "a"))
    take(settings, STRICT, ("late", 2, "a"), ("two", 4, "a"))
    assert_a_backfill_leaves([("a", 3, 1), ("a", 4, 2)], settings, MILD)


def test_a_copy_of_what_came_too_late_counts_once_if_it_comes_when_there_is_more_lateness(settings: Settings) -> None:
    take(settings, STRICT, ("one", 3, "a"), ("late", 2, "a"))
    take(settings, MILD, ("late", 2, "a"), ("late", 2, "a"))
    assert_a_backfill_leaves([("a", 2, 1), ("a", 3, 2)], settings, MILD)


def test_a_copy_of_what_counted_is_one_though_there_is_less_lateness_now(settings: Settings) -> None:
    take(settings, MILD, ("one", 3, "a"), ("late", 2, "a"))
    take(settings, STRICT, ("late", 2, "a"), partition=1)
    assert_a_backfill_leaves([("a", 2, 1), ("a", 3, 2)], settings, STRICT)


def test_the_first_of_two_copies_counts_though_it_would_be_too_late_now(settings: Settings) -> None:
    take(settings, MILD, ("one", 3, "a"), ("late", 2, "a"))
    take(settings, MILD, ("late", 2, "a"), partition=1)
    assert_a_backfill_leaves([("a", 2, 1), ("a", 3, 2)], settings, STRICT)


def test_an_event_after_the_change_builds_its_windows_of_what_counted_before(settings: Settings) -> None:
    take(settings, MILD, ("one", 3, "a"), ("late", 2, "a"))
    take(settings, STRICT, ("two", 4, "a"), ("later", 1, "a"))
    assert_a_backfill_leaves([("a", 2, 1), ("a", 3, 2), ("a", 4, 3)], settings, STRICT)


def test_another_event_id_is_for_what_comes(settings: Settings) -> None:
    by_toy, by_shop = spec_of(), spec_of(event_id=("toy", "shop"))
    take(settings, by_toy, ("one", 1, "a"), ("one", 1, "b"))
    assert_a_backfill_leaves([("a", 1, 1)], settings, by_shop)
    take(settings, by_shop, ("one", 2, "a"), ("one", 2, "b"), ("one", 2, "c"))
    # Those of shops a and b are copies of what is in the lake, counted or not.
    assert_a_backfill_leaves([("a", 1, 1), ("c", 2, 1)], settings, by_shop)


def test_in_a_lake_that_does_not_tell_what_came_too_late_the_lateness_of_now_does(settings: Settings) -> None:
    """As in one of an older version; what is taken in from then on tells it."""
    take(settings, MILD, ("one", 3, "a"), ("late", 2, "a"))
    with Lake(settings, STRICT.name).existing(ASKED.table).update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("too_late")
    take(settings, STRICT, ("two", 4, "a"))
    backfill(settings, Lake(settings, STRICT.name), STRICT, STRICT.views[0])
    assert_a_backfill_leaves([("a", 3, 1), ("a", 4, 2)], settings, STRICT)
    take(settings, STRICT, ("later", 1, "a"))
    backfill(settings, Lake(settings, MILD.name), MILD, MILD.views[0])
    assert_a_backfill_leaves([("a", 2, 1), ("a", 3, 2), ("a", 4, 3)], settings, MILD)
