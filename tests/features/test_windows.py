from __future__ import annotations

import itertools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.consumer import Batch
from features.events import Records, encode
from features.ingest import build_new_features
from features.lake import Lake
from features.topic_stream import TopicStream, topic_schema
from features.windows import IS_NEW, build_features, inputs
from perennial.settings import Settings
from pipelines.spec import Aggregate, EventField, EventSpec, FeatureView

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR_S = 3_600
SOLD = EventSpec(
    topic="toys.sold.v1",
    fields=(
        EventField(name="sale", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="shop", type="string", nullable=True),
        EventField(name="price", type="float", nullable=True),
        EventField(name="gift", type="bool", nullable=True),
    ),
    event_timestamp="event_timestamp",
    event_id=("sale",),
    partition_key="sale",
)
VIEW = FeatureView(
    name="shop",
    entity="store",
    topic=SOLD.topic,
    key="shop",
    aggregates=(
        Aggregate(name="mean_2h", field="price", function="mean", window_s=2 * HOUR_S),
        Aggregate(name="count_2h", field="price", function="count", window_s=2 * HOUR_S),
        Aggregate(name="last_1h", field="price", function="last", window_s=HOUR_S),
        Aggregate(name="gifts_3h", field="gift", function="rate", window_s=3 * HOUR_S),
    ),
    ttl_s=3 * HOUR_S,
)
NAMES = [a.name for a in VIEW.aggregates]


def sales(*rows: tuple[float, str | None, float | None, bool | None], ids: str | None = None) -> pl.DataFrame:
    """(hours after T0, shop, price, gift), taken in in this order, a second apart."""
    return pl.DataFrame(
        {
            "sale": [ids[i] if ids else f"s{i}" for i in range(len(rows))],
            "event_timestamp": [T0 + timedelta(hours=row[0]) for row in rows],
            "shop": [row[1] for row in rows],
            "price": [row[2] for row in rows],
            "gift": [row[3] for row in rows],
            "kafka_partition": [0] * len(rows),
            "kafka_offset": list(range(len(rows))),
            "created_timestamp": [T0 + timedelta(days=1, seconds=i) for i in range(len(rows))],
            "extra": [None] * len(rows),
            "late_s": [0.0] * len(rows),
            "too_late": [None] * len(rows),
            "is_duplicate": [False] * len(rows),
        },
        schema=topic_schema(SOLD),
    )


def values(events: pl.DataFrame) -> dict[tuple[str, float], tuple[float | None, ...]]:
    """Aggregates by (store, hours after T0)."""
    built = build_features(events, VIEW, SOLD)
    hours = [(at - T0) / timedelta(hours=1) for at in built["event_timestamp"]]
    return dict(zip(zip(built["store"], hours, strict=True), built.select(NAMES).rows(), strict=True))


def test_each_event_shows_what_its_windows_hold() -> None:
    events = sales((0, "a", 10, True), (1, "a", 20, False), (1.5, "b", 7, None), (2, "a", 60, False), (4, "a", 2, True))
    assert values(events) == {
        ("a", 0): (10.0, 1.0, 10.0, 1.0),
        ("a", 1): (15.0, 2.0, 20.0, 0.5),
        ("b", 1.5): (7.0, 1.0, 7.0, None),
        # A window is open on its left: the event two hours ago is out of the mean, and within three hours for the gifts.
        ("a", 2): (40.0, 2.0, 60.0, pytest.approx(1 / 3)),
        ("a", 4): (2.0, 1.0, 2.0, 0.5),
    }


def test_missing_values_are_not_counted_and_the_last_known_one_stays() -> None:
    events = sales((0, "a", 10, None), (0.5, "a", None, None))
    assert values(events) == {("a", 0): (10.0, 1.0, 10.0, None), ("a", 0.5): (10.0, 1.0, 10.0, None)}


def test_a_window_without_a_value_has_none_and_counts_zero() -> None:
    assert values(sales((0, "a", None, None))) == {("a", 0): (None, 0.0, None, None)}


def test_events_without_a_key_are_left_out() -> None:
    assert values(sales((0, None, 10, True), (1, "a", 20, True))) == {("a", 1): (20.0, 1.0, 20.0, 1.0)}


def test_events_of_one_moment_share_one_row_that_holds_them_all() -> None:
    events = sales((0, "a", 10, True), (0, "a", 30, False))
    # Of two events at once, the last is the one with the greater id.
    assert values(events) == {("a", 0): (20.0, 2.0, 30.0, 0.5)}
    assert values(events.reverse()) == values(events)


def test_what_is_marked_as_a_copy_or_came_too_late_does_not_count() -> None:
    events = sales((0, "a", 10, True), (0, "a", 99, False), (0.5, "a", 70, False), (0.5, "a", 20, True))
    marked = events.with_columns(
        is_duplicate=pl.Series([False, True, False, None]), late_s=pl.Series([86_400.0, 0.0, 86_400.1, None])
    )
    expected = {("a", 0): (10.0, 1.0, 10.0, 1.0), ("a", 0.5): (15.0, 2.0, 20.0, 1.0)}
    assert values(marked) == expected  # by the lateness of now, as nothing else is known
    decided = events.with_columns(
        is_duplicate=marked["is_duplicate"],
        late_s=pl.Series([90_000.0, 0.0, 10.0, 0.0]),
        too_late=pl.Series([False, False, True, False]),
    )
    assert values(decided) == expected


def test_texts_can_be_counted_by_the_stream_as_by_a_backfill() -> None:
    counting = VIEW.model_copy(
        update={"aggregates": (Aggregate(name="sales_2h", field="sale", function="count", window_s=2 * HOUR_S),)}
    )
    events = sales((0, "a", 1, True), (0.5, "a", 1, True), (1, "b", 1, True), (1.5, "a", 1, True))
    assert build_features(events, counting, SOLD).sort("store", "event_timestamp")["sales_2h"].to_list() == [1, 2, 3, 1]
    marked = events.with_columns((pl.col("kafka_offset") == 3).alias(IS_NEW))
    assert build_features(marked, counting, SOLD)["sales_2h"].to_list() == [3]


def test_the_greatest_numbers_that_are_taken_in_add_up_and_leave_again() -> None:
    events = sales((0, "a", 1e150, True), (0.1, "a", 1e150, True), (0.2, "a", -1e150, True), (3, "a", 1, True))
    assert values(events)["a", 0.1] == (pytest.approx(1e150), 2.0, 1e150, 1.0)
    assert values(events)["a", 3] == (1.0, 1.0, 1.0, 1.0)


def test_no_events_are_no_rows_with_the_right_columns() -> None:
    built = build_features(sales(), VIEW, SOLD)
    assert built.is_empty()
    assert built.columns == ["store", "event_timestamp", "created_timestamp", *NAMES]


def test_a_row_is_newer_the_more_events_its_longest_window_holds_whatever_the_clocks_were() -> None:
    events = sales((0, "a", 10, True), (0, "a", 30, True), (2.5, "a", 20, True))
    for moved in (timedelta(0), timedelta(hours=-9)):
        built = build_features(events.with_columns(pl.col("created_timestamp") + moved), VIEW, SOLD)
        assert built["created_timestamp"].to_list() == [
            T0 + timedelta(microseconds=2),
            T0 + timedelta(hours=2.5, microseconds=3),
        ]


def test_a_late_event_corrects_exactly_its_windows() -> None:
    known = sales(
        (0, "a", 10, True), (2, "a", 20, True), (2.5, "b", 5, True), (3.5, "a", 30, True), (4.1, "a", 4, True)
    )
    late = sales((1, "a", 40, False)).with_columns(sale=pl.lit("late"), kafka_offset=pl.lit(9, pl.Int64))
    marked = pl.concat(
        [known.with_columns(pl.lit(value=False).alias(IS_NEW)), late.with_columns(pl.lit(value=True).alias(IS_NEW))]
    )
    built = build_features(marked, VIEW, SOLD)
    # Its widest window reaches three hours: the rows at 1 (its own), 2 and 3.5 change; 0 is before it, 4.1 beyond it.
    assert built["event_timestamp"].to_list() == [T0 + timedelta(hours=h) for h in (1, 2, 3.5)]
    assert set(built["store"]) == {"a"}
    assert built["mean_2h"].to_list() == [25.0, 30.0, 25.0]
    assert built["gifts_3h"].to_list() == [0.5, pytest.approx(2 / 3), pytest.approx(2 / 3)]


def test_a_second_copy_of_an_event_changes_no_row() -> None:
    known = sales((0, "a", 10, True), (1, "a", 20, True)).with_columns(pl.lit(value=False).alias(IS_NEW))
    again = known.head(1).with_columns(
        pl.lit(value=True).alias(IS_NEW),
        is_duplicate=pl.lit(value=True),
        created_timestamp=pl.col("created_timestamp") + timedelta(hours=1),
    )
    assert build_features(pl.concat([known, again]), VIEW, SOLD).is_empty()


def test_a_giant_value_leaves_no_trace_once_it_is_out_of_the_window() -> None:
    events = sales((0, "a", 1e300, True), (1, "a", 1, True), (2, "a", 3, True), (3, "a", 5, True))
    assert values(events)["a", 2] == (2.0, 2.0, 3.0, 1.0)
    assert values(events)["a", 3] == (4.0, 2.0, 5.0, 1.0)


# Times on a grid of half hours, few keys and few ids make ties, duplicates and window edges common.
event_rows = st.tuples(
    st.integers(0, 12).map(lambda half_hours: half_hours / 2),
    st.sampled_from(["a", "b", None]),
    st.none() | st.integers(-50, 50).map(float),
    st.none() | st.booleans(),
)
drawn_events = st.lists(st.tuples(event_rows, st.sampled_from("pqrstuvw")), max_size=14)


def by_hand(events: pl.DataFrame) -> dict[tuple[str, float], tuple[float | None, ...]]:
    """The definition, word by word, in plain Python."""
    kept = [row for row in events.iter_rows(named=True) if row["shop"] is not None]
    kept.sort(key=lambda r: (r["event_timestamp"], r["sale"]))
    found = {}
    for row in kept:

        def window(
            field: str, hours: int, now: datetime = row["event_timestamp"], shop: str = row["shop"]
        ) -> list[float]:
            return [
                float(r[field])
                for r in kept
                if r["shop"] == shop
                and now - timedelta(hours=hours) < r["event_timestamp"] <= now
                and r[field] is not None
            ]

        def mean(numbers: list[float]) -> float | None:
            return pytest.approx(sum(numbers) / len(numbers)) if numbers else None

        prices, last, gifts = window("price", 2), window("price", 1), window("gift", 3)
        place = (row["shop"], (row["event_timestamp"] - T0) / timedelta(hours=1))
        found[place] = (mean(prices), float(len(prices)), last[-1] if last else None, mean(gifts))
    return found


@settings(max_examples=60)
@given(drawn_events)
def test_windows_are_what_their_definition_says(drawn: list[tuple[tuple[float, str, float, bool], str]]) -> None:
    events = sales(*(row for row, _ in drawn), ids="".join(name for _, name in drawn) or None)
    assert values(events) == by_hand(events)


@settings(max_examples=30)
@given(drawn_events, st.data())
def test_the_order_of_the_rows_does_not_matter(
    drawn: list[tuple[tuple[float, str, float, bool], str]], data: st.DataObject
) -> None:
    events = sales(*(row for row, _ in drawn), ids="".join(name for _, name in drawn) or None)
    shuffled = events[data.draw(st.permutations(range(events.height)))] if drawn else events
    assert build_features(shuffled, VIEW, SOLD).equals(build_features(events, VIEW, SOLD))


@settings(max_examples=40)
@given(drawn_events, st.lists(st.integers(0, 14), max_size=4))
def test_any_split_into_batches_ends_in_the_same_values_as_a_backfill(
    drawn: list[tuple[tuple[float, str, float, bool], str]], cuts: list[int]
) -> None:
    events = sales(*(row for row, _ in drawn), ids="".join(name for _, name in drawn) or None)
    edges = [0, *sorted(min(c, events.height) for c in cuts), events.height]
    streamed: dict[tuple[str, datetime], tuple[object, ...]] = {}
    for start, end in itertools.pairwise(edges):
        marked = events.head(end).with_columns((pl.col("kafka_offset") >= start).alias(IS_NEW))
        for row in build_features(marked, VIEW, SOLD).iter_rows(named=True):
            streamed[row["store"], row["event_timestamp"]] = tuple(row[name] for name in ("created_timestamp", *NAMES))
    backfill = {
        (row["store"], row["event_timestamp"]): tuple(row[name] for name in ("created_timestamp", *NAMES))
        for row in build_features(events, VIEW, SOLD).iter_rows(named=True)
    }
    assert streamed == backfill


@settings(max_examples=12)
@given(drawn_events, st.lists(st.integers(0, 14), max_size=3))
def test_any_split_through_the_lake_ends_in_the_same_values_as_a_backfill(
    drawn: list[tuple[tuple[float, str, float, bool], str]], cuts: list[int]
) -> None:
    """Each batch is marked on its own, so copies and late events are found by what the lake says of earlier ones."""
    events = sales(*(row for row, _ in drawn), ids="".join(name for _, name in drawn) or None)
    narrow = SOLD.model_copy(update={"lateness_s": 3 * HOUR_S, "dedup_s": HOUR_S})
    edges = [0, *sorted(min(c, events.height) for c in cuts), events.height]
    with tempfile.TemporaryDirectory() as home:
        lake, where = Lake(Settings(home=Path(home)), "toys"), Settings(home=Path(home))
        streamed = {}
        for start, end in itertools.pairwise(edges):
            stream = TopicStream(where, lake, narrow)
            values_ = encode(events[start:end], narrow)
            records = Records.of((0, start + i, None, value) for i, value in enumerate(values_))
            new = stream.take(Batch(stream.event.topic, records, {0: end} if end else {}), T0 + timedelta(days=1))
            before = stream.positions
            stream.commit()
            if new.height:
                for row in build_new_features(lake, VIEW, narrow, before, new.select(inputs(VIEW, narrow))).iter_rows(
                    named=True
                ):
                    streamed[row["store"], (row["event_timestamp"] - T0) / timedelta(hours=1)] = tuple(
                        row[n] for n in NAMES
                    )
    assert streamed == by_hand(as_it_counts(events, 3 * HOUR_S, HOUR_S))


def as_it_counts(events: pl.DataFrame, lateness_s: int, dedup_s: int) -> pl.DataFrame:
    """What is not a copy and did not come too late, one event after the other."""
    newest, before, kept = datetime.min.replace(tzinfo=UTC), [], []
    for row in events.iter_rows(named=True):
        at = row["event_timestamp"]
        in_time = (newest - at).total_seconds() <= lateness_s
        copy = any(row["sale"] == sale and abs((at - then).total_seconds()) <= dedup_s for sale, then in before)
        if in_time:
            before.append((row["sale"], at))
        kept.append(in_time and not copy)
        newest = max(newest, at)
    return events.filter(pl.Series(kept, dtype=pl.Boolean))
