from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Records, decode, encode
from perennial.errors import UsageError
from pipelines.spec import EventField, EventSpec
from serving.events import events_frame

EVENT = EventSpec(
    topic="toys.asked.v1",
    fields=tuple(
        EventField(name="event_timestamp" if kind == "timestamp" else f"a_{kind}", type=kind, nullable=nullable)
        for kind, nullable in [("string", True), ("int", False), ("float", True), ("bool", True), ("timestamp", False)]
    ),
    event_timestamp="event_timestamp",
    event_id=("a_int",),
    partition_key="a_string",
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "a_string": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
            "a_int": st.integers(-(2**63), 2**63 - 1),
            "a_float": st.none() | st.floats(-1e150, 1e150),
            "a_bool": st.none() | st.booleans(),
            "event_timestamp": st.datetimes(datetime(2000, 1, 1), datetime(2026, 3, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        }
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS)
def test_a_request_is_read_as_the_consumer_reads_the_topic(rows):
    records = encode(pl.DataFrame(rows, schema=EVENT.schema_, orient="row"), EVENT)
    kafka = decode(Records.of((0, i, None, value) for i, value in enumerate(records)), EVENT, datetime.now(UTC)).events
    frame = events_frame([orjson.loads(value) for value in records], EVENT)
    assert frame.equals(kafka.select(list(EVENT.schema_)))


VALUES = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(2**63 - 2, 2**63 + 1),
    st.sampled_from([2**64 - 1, 2**64, 10**400, -(2**63) - 1, [], {}, [[]], {"a": 1}, "2026-02-28", 1e308]),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
    st.datetimes(datetime(2026, 2, 28), datetime(2026, 3, 2)).map(lambda at: f"{at.isoformat(' ')}+01:00"),  # noqa: DTZ001
    st.sampled_from(
        ["2026-02-28T24:00:00Z", "2026-02-28T23:59:60Z", "2026-W09-1T00:00Z", "20260228T0000Z", "2026-02-30T00:00Z"]
    ),
)


@given(st.fixed_dictionaries(dict.fromkeys(EVENT.schema_, VALUES)), st.sampled_from(sorted(EVENT.schema_)))
def test_a_request_is_refused_where_the_consumer_makes_a_dead_letter_of_it(drawn, odd):
    """One field is anything; of the others, most draws are refused by both for more than one reason."""
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    good = {"a_string": "a", "a_int": 1, "a_float": 0.5, "a_bool": True, "event_timestamp": "2026-03-01T00:00:00Z"}
    for event in (drawn, {**good, odd: drawn[odd]}):
        # The standard library, as a client might: it writes NaN, and numbers of any length.
        decoded = decode(Records.of([(0, 0, None, json.dumps(event).encode())]), EVENT, now)
        try:
            frame = events_frame([event], EVENT, now)
        except UsageError:
            assert decoded.dead_letters.height == 1
        else:
            assert decoded.events.select(frame.columns).equals(frame)


def test_a_request_ahead_of_the_clock_is_refused(asked, toy_event):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    events_frame([toy_event(event_timestamp="2026-01-01T00:05:00Z")], asked, now)
    with pytest.raises(UsageError, match=r"event 0: field 'event_timestamp' is .*, 0:05:01 ahead of the clock"):
        events_frame([toy_event(event_timestamp="2026-01-01T00:05:01Z")], asked, now)


def test_times_of_any_zone_become_utc(asked, toy_event):
    frame = events_frame([toy_event(event_timestamp="2026-01-01T01:30:00+01:00")], asked)
    assert frame["event_timestamp"].to_list() == [datetime(2026, 1, 1, 0, 30, tzinfo=UTC)]


def test_a_whole_number_is_a_float_where_one_is_asked_for_and_a_nullable_field_may_be_absent(asked, toy_event):
    event = toy_event(x=3, extra="ignored")
    del event["note"]
    frame = events_frame([event], asked)
    assert frame["x"].to_list() == [3.0]
    assert frame["note"].to_list() == [None]
    assert frame.schema == asked.schema_


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": None}, r"event 1: field 'x' is missing or null; mend it, or see the fields of toys\.asked\.v1"),
        ({"x": "3"}, r"event 1: field 'x' is '3', a str, expected float; .* toys\.asked\.v1"),
        ({"x": True}, "field 'x' is True"),
        ({"x": math.nan}, "field 'x' is nan"),
        ({"x": 10**400}, "field 'x' is 1000"),
        ({"count": 1.0}, r"field 'count' is 1\.0, a float, expected int"),
        ({"count": True}, "field 'count' is True"),
        ({"count": 2**63}, "field 'count' is 9223372036854775808, beyond 64 bits"),
        ({"sold": 1}, "field 'sold' is 1"),
        ({"toy_id": 7}, "field 'toy_id' is 7"),
        ({"toy_id": "\ud800"}, r"field 'toy_id' is '\\ud800'"),
        (
            {"event_timestamp": "2026-01-01T00:00:00"},
            r"'2026-01-01T00:00:00', expected timestamp \(ISO 8601 with a zone\)",
        ),
        ({"event_timestamp": "yesterday"}, "'yesterday', expected timestamp"),
        ({"event_timestamp": 5}, "field 'event_timestamp' is 5"),
        ({"event_timestamp": "0001-01-01T00:00:00+10:00"}, "expected a time of 1970 to 2199"),
        ({"event_timestamp": "1999-12-31T23:59:59Z"}, "0:00:01 before 2000-01-01T00:00:00"),
        ({"note": "x" * 2**20}, r"it has 1,048,\d+ bytes, more than the 1,048,576"),
        ({"unknown": [10**30, "\ud800"]}, "a field that is not its topic's cannot be kept"),
    ],
)
def test_what_does_not_fit_is_named_with_its_value(asked, toy_event, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        events_frame([toy_event(), toy_event(**changes)], asked)


def test_a_missing_field_is_named(asked, toy_event):
    event = toy_event()
    del event["x"]
    with pytest.raises(UsageError, match="event 0: field 'x' is missing or null"):
        events_frame([event], asked)
