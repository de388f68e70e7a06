from __future__ import annotations

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
            "a_int": st.integers(-(2**63) + 1, 2**63 - 1),
            "a_float": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "a_bool": st.none() | st.booleans(),
            "event_timestamp": st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
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
        ({"x": None}, r"event 1: field 'x' is null; toys\.asked\.v1 needs a float"),
        ({"x": "3"}, r"event 1: field 'x' is '3'; toys\.asked\.v1 needs a float"),
        ({"x": True}, "field 'x' is True"),
        ({"x": math.nan}, "field 'x' is nan"),
        ({"x": 10**400}, "field 'x' is 1000"),
        ({"count": 1.0}, r"field 'count' is 1\.0; .* needs a int"),
        ({"count": True}, "field 'count' is True"),
        ({"count": 2**63}, "field 'count' is 9223372036854775808"),
        ({"sold": 1}, "field 'sold' is 1"),
        ({"toy_id": 7}, "field 'toy_id' is 7"),
        ({"toy_id": "\ud800"}, r"field 'toy_id' is '\\ud800'"),
        ({"event_timestamp": "2026-01-01T00:00:00"}, "'2026-01-01T00:00:00'; give an ISO 8601 time with its zone"),
        ({"event_timestamp": "yesterday"}, "'yesterday'; give an ISO 8601"),
        ({"event_timestamp": 5}, "field 'event_timestamp' is 5"),
        ({"event_timestamp": "0001-01-01T00:00:00+10:00"}, "give an ISO 8601"),
    ],
)
def test_what_does_not_fit_is_named_with_its_value(asked, toy_event, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        events_frame([toy_event(), toy_event(**changes)], asked)


def test_a_missing_field_is_named(asked, toy_event):
    event = toy_event()
    del event["x"]
    with pytest.raises(UsageError, match="event 0: field 'x' is missing"):
        events_frame([event], asked)
