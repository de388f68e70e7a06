from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.events import events_schema
from features.labels import PREDICTIONS, Outcomes, first_made, join_labels, labels, labels_of, outcomes, predictions
from features.lake import Lake, first_of_each
from perennial.settings import Settings
from perennial.template.events import SETTLED
from perennial.template.pipeline import PIPELINE

T0 = datetime(2026, 1, 1, tzinfo=UTC)
AT = pl.Datetime("us", "UTC")


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


def known(lake: Lake, as_of: float, since: float | None = None) -> list[tuple[str, float, bool]]:
    """(order, hours after T0, sent back)."""
    found = labels(lake, PIPELINE, hours(since) if since is not None else None, hours(as_of))
    return [(key, (at - T0) / timedelta(hours=1), value) for key, value, at in found.iter_rows()]


def outcome(lake: Lake, as_of: float, since: float | None = 0) -> dict[tuple[str, float], bool | None]:
    """Labels by (order, hours after T0 of the prediction)."""
    found = outcomes(lake, PIPELINE, hours(since) if since is not None else None, hours(as_of)).frame
    rows = found.select("entity_key", "event_timestamp", "label").rows()
    return {(key, (at - T0) / timedelta(hours=1)): label for key, at, label in rows}


def test_labels_are_by_time_whatever_came_in_first(lake: Lake) -> None:
    settle(lake, ("a", 5, False), ("b", 1, True))
    settle(lake, ("a", 3, True), ("b", 2, False))
    assert known(lake, 10) == [("b", 1, True), ("b", 2, False), ("a", 3, True), ("a", 5, False)]


def test_of_two_labels_at_once_the_first_on_the_topic_counts(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("a", 3, False))
    assert known(lake, 10) == [("a", 3, True)]
    events = lake.read(SETTLED.table)
    for order in (events, events.reverse()):
        assert labels_of(order, PIPELINE)["label"].to_list() == [True]


def test_a_label_is_known_only_after_its_moment(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("b", 4, True))
    assert known(lake, 3) == []
    assert known(lake, 4) == [("a", 3, True)]
    assert known(lake, 4.001) == [("a", 3, True), ("b", 4, True)]
    assert known(lake, 10, since=4) == [("b", 4, True)]


def test_a_label_that_is_undefined_is_none(lake: Lake) -> None:
    settle(lake, ("a", 3, True), ("b", 4, False))
    undefined = PIPELINE.label.model_copy(update={"value": lambda f: f["sent_back"].replace(False, None)})
    found = labels(lake, PIPELINE.model_copy(update={"label": undefined}), None, hours(10))
    assert found["entity_key"].to_list() == ["a"]


def test_after_an_undefined_label_the_next_within_the_horizon_counts(lake: Lake) -> None:
    undefined = PIPELINE.label.model_copy(update={"value": lambda f: f["sent_back"].replace(False, None)})
    predict(lake, ("a", 0), ("b", 0))
    settle(lake, ("a", 1, False), ("b", 1, False), ("a", 2, True), ("b", 49, True))
    found = outcomes(lake, PIPELINE.model_copy(update={"label": undefined}), T0, hours(60))
    assert found.frame.select("entity_key", "label").rows() == [("a", True), ("b", None)]
    assert found.late_labels == 1


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
    # At hour 50 the horizon of 48 hours has passed for predictions before hour 2: a label of this very moment, which is
    # not known yet, would still count for the one of hour 2.
    assert found.counts == {"labelled_rows": 1, "waiting_rows": 2, "expired_rows": 1, "late_labels": 0}


def test_a_label_counts_up_to_its_horizon_and_not_beyond(lake: Lake) -> None:
    predict(lake, ("at once", 0), ("at the horizon", 0), ("late", 0), ("before", 1))
    settle(lake, ("at once", 0, True), ("at the horizon", 48, True), ("before", 0.999, True))
    settle(lake, ("late", 48.001, True), ("late", 60, True))
    assert outcome(lake, 48) == {
        ("at once", 0): True,
        ("at the horizon", 0): None,
        ("late", 0): None,
        ("before", 1): None,
    }
    found = outcomes(lake, PIPELINE, T0, hours(100))
    labelled = dict(found.frame.select("entity_key", "label").rows())
    assert labelled == {"at once": True, "at the horizon": True, "late": None, "before": None}
    assert found.frame.filter(pl.col("label").is_null())["label_timestamp"].null_count() == 2
    # The order that was settled too late counts once, however often it was.
    assert found.counts == {"labelled_rows": 2, "waiting_rows": 0, "expired_rows": 2, "late_labels": 1}


def test_each_prediction_of_a_key_has_a_label_of_its_own(lake: Lake) -> None:
    predict(lake, ("a", 0), ("a", 24), ("a", 72), ("a", 200))
    settle(lake, ("a", 30, True), ("a", 80, False))
    # The label of hour 30 is the first after both of the first predictions; that of hour 80 is too late for them.
    assert outcome(lake, 300) == {("a", 0): True, ("a", 24): True, ("a", 72): False, ("a", 200): None}
    assert outcomes(lake, PIPELINE, T0, hours(300)).late_labels == 0


def test_a_label_that_is_in_time_for_a_later_prediction_is_not_late(lake: Lake) -> None:
    predict(lake, ("a", 0), ("a", 100), ("b", 0))
    settle(lake, ("a", 101, True), ("b", 101, True))
    found = outcomes(lake, PIPELINE, T0, hours(300))
    assert found.counts == {"labelled_rows": 1, "waiting_rows": 0, "expired_rows": 2, "late_labels": 1}


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


def test_all_of_history_is_what_no_beginning_means(lake: Lake) -> None:
    predict(lake, ("a", -9_000), ("b", 1))
    settle(lake, ("a", -8_999, True), ("b", 6, False))
    assert outcome(lake, 10, since=None) == {("a", -9_000): True, ("b", 1): False}


def test_of_two_predictions_of_a_key_and_time_the_first_that_was_made_counts(lake: Lake) -> None:
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


def test_marks_of_duplicates_are_heeded_where_a_table_has_them(lake: Lake) -> None:
    predict(lake, ("a", 0), ("b", 0), ("c", 0))
    # Taken in by an older version, which marked nothing.
    settle(lake, ("a", 5, True))
    marked = [("a", 3, False, True), ("b", 4, False, True), ("b", 7, True, False), ("c", 2, True, None)]
    lake.append(SETTLED.table, settled_frame(marked).with_columns(kafka_offset=pl.int_range(10, 14)))
    assert outcome(lake, 10) == {("a", 0): True, ("b", 0): True, ("c", 0): True}


# From here on: any history, against an oracle of plain loops.

Asked = tuple[str | None, int]
Told = tuple[str | None, int, bool | None, bool | None]
KEYS = st.sampled_from(["a", "a", "b", None])
TIMES = st.integers(0, 4)
TERNARY = st.sampled_from([True, False, None])
ASKED = st.lists(st.tuples(KEYS, TIMES), max_size=9)
TOLD = st.lists(st.tuples(KEYS, TIMES, TERNARY, st.sampled_from([None, False, False, True])), max_size=9)
ORDER = st.integers(0, 2**16).map(random.Random)


def predictions_frame(asked: list[Asked]) -> pl.DataFrame:
    """(key, hours after T0), made a second apart in this order; `score` is the place in it."""
    return pl.DataFrame(
        {
            "entity_key": [key for key, _ in asked],
            "event_timestamp": [hours(at) for _, at in asked],
            "score": range(len(asked)),
            "created_timestamp": [T0 + timedelta(days=9, seconds=i) for i in range(len(asked))],
        },
        schema={"entity_key": pl.String, "event_timestamp": AT, "score": pl.Int64, "created_timestamp": AT},
    )


def settled_frame(told: list[Told]) -> pl.DataFrame:
    """(key, hours after T0, sent back or undefined, marked as a duplicate), on the topic in this order."""
    columns: dict[str, object] = {
        "order_id": [t[0] for t in told],
        "event_timestamp": [hours(t[1]) for t in told],
        "product": ["hat"] * len(told),
        "sent_back": [t[2] for t in told],
        "kafka_partition": [0] * len(told),
        "kafka_offset": range(len(told)),
        "created_timestamp": [T0 + timedelta(days=9)] * len(told),
        "extra": [None] * len(told),
        "is_duplicate": [t[3] for t in told],
    }
    return pl.DataFrame(columns, schema={**events_schema(SETTLED), "is_duplicate": pl.Boolean})


def shuffled(frame: pl.DataFrame, order: random.Random) -> pl.DataFrame:
    places = list(range(frame.height))
    order.shuffle(places)
    return frame[places]


def join(asked: list[Asked], told: list[Told], horizon: int, as_of: int, order: random.Random) -> Outcomes:
    before = pl.col("event_timestamp") < hours(as_of)
    made = first_made(shuffled(predictions_frame(asked).filter(before), order))
    happened = labels_of(shuffled(settled_frame(told).filter(before), order), PIPELINE)
    return join_labels(shuffled(made, order), happened, horizon * 3_600, hours(as_of))


def labels_by_place(found: Outcomes) -> dict[int, tuple[bool, int] | None]:
    """By the prediction's place: its label and the hour of it."""
    return {
        place: None if label is None else (label, round((at - T0) / timedelta(hours=1)))
        for place, label, at in found.frame.select("score", "label", "label_timestamp").rows()
    }


def first_asked(asked: list[Asked]) -> list[int]:
    """Places of the predictions that count."""
    kept: list[int] = []
    for place, (key, at) in enumerate(asked):
        if key is None or all(asked[other] != (key, at) for other in kept):
            kept.append(place)
    return kept


@given(ASKED, TOLD, st.integers(1, 3), st.integers(0, 10), ORDER)
@example([("a", 0), ("a", 2)], [("a", 2, True, None), ("a", 2, False, None)], 2, 3, random.Random(0))
@example([("a", 0)], [("a", 3, None, None), ("a", 3, True, None)], 3, 4, random.Random(0))
@example([("a", 0), ("a", 3)], [("a", 3, True, None)], 1, 9, random.Random(0))
def test_the_join_is_what_plain_loops_say(
    asked: list[Asked], told: list[Told], horizon: int, as_of: int, order: random.Random
) -> None:
    expected: dict[int, tuple[bool, int] | None] = {}
    waiting = expired = 0
    used, missed = set(), set()
    for place in first_asked(asked):
        key, t = asked[place]
        if t >= as_of:
            continue
        first: tuple[bool, int] | None = None
        for label_key, u, value, copy in told:
            if key is None or label_key != key or value is None or copy or not t <= u < as_of:
                continue
            if first is None or u < first[1]:  # of two at once the first on the topic stays
                first = value, u
        if first is not None and first[1] - t > horizon:
            missed.add((key, first[1]))
            first = None
        elif first is not None:
            used.add((key, first[1]))
        expected[place] = first
        if first is None:
            # A label of the moment `as_of` is not known at `as_of`.
            still_may_come = any(t <= u <= t + horizon for u in range(as_of, 99))
            waiting, expired = waiting + still_may_come, expired + (not still_may_come)
    found = join(asked, told, horizon, as_of, order)
    assert labels_by_place(found) == expected
    assert found.counts == {
        "labelled_rows": len(expected) - waiting - expired,
        "waiting_rows": waiting,
        "expired_rows": expired,
        "late_labels": len(missed - used),
    }


@given(ASKED, TOLD, st.integers(1, 3), st.integers(0, 10), st.integers(0, 6), ORDER)
def test_what_was_labelled_or_had_expired_stays_so(
    asked: list[Asked], told: list[Told], horizon: int, as_of: int, more: int, order: random.Random
) -> None:
    before, after = join(asked, told, horizon, as_of, order), join(asked, told, horizon, as_of + more, order)
    then, now = labels_by_place(before), labels_by_place(after)
    for place, label in then.items():
        expired = label is None and asked[place][1] + horizon < as_of
        assert now[place] == label or (label is None and not expired)
    assert after.expired_rows >= before.expired_rows
    assert after.labelled_rows >= before.labelled_rows
    assert after.late_labels >= before.late_labels


@given(st.lists(st.tuples(KEYS, st.integers(0, 3), TERNARY, st.integers(0, 2)), max_size=9), ORDER)
def test_of_events_of_a_key_and_time_the_one_taken_in_first_stays(
    rows: list[tuple[str | None, int, bool | None, int]], order: random.Random
) -> None:
    """(key, hour, marked, second in which it was taken in); the place is the offset."""
    events = settled_frame([(key, at, True, marked) for key, at, marked, _ in rows]).with_columns(
        created_timestamp=pl.Series([hours(99) + timedelta(seconds=row[3]) for row in rows], dtype=AT)
    )
    expected: set[int] = set()
    for place, (key, at, marked, second) in enumerate(rows):
        earlier = [
            other
            for other, row in enumerate(rows)
            if key is not None and row[:2] == (key, at) and not row[2] and (row[3], other) < (second, place)
        ]
        if not marked and not earlier:
            expected.add(place)
    assert set(first_of_each(shuffled(events, order), "order_id")["kafka_offset"]) == expected
