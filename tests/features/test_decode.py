from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.events import DEAD_LETTER_SCHEMA, Records, decode, encode, events_schema
from pipelines.spec import EventField, EventSpec

CREATED = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVENT = EventSpec(
    topic="toys.sold.v1",
    fields=(
        EventField(name="toy_id", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="pieces", type="int"),
        EventField(name="price", type="float"),
        EventField(name="gift", type="bool"),
        EventField(name="note", type="string", nullable=True),
        EventField(name="returned_at", type="timestamp", nullable=True),
        EventField(name="rating", type="int", nullable=True),
    ),
    event_timestamp="event_timestamp",
    event_id=("toy_id",),
    partition_key="toy_id",
)
GOOD = {
    "toy_id": "t1",
    "event_timestamp": "2026-02-28T23:30:00+01:00",
    "pieces": 3,
    "price": 2.5,
    "gift": True,
    "note": "with ribbon",
    "returned_at": None,
    "rating": 5,
}


def record(value: bytes | None, offset: int = 0, partition: int = 0) -> tuple[int, int, bytes | None, bytes | None]:
    return partition, offset, b"key", value


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != field}).encode()


def test_a_good_record_becomes_an_event_with_its_place_and_utc_times() -> None:
    decoded = decode(Records.of([(2, 17, None, json.dumps(GOOD).encode())]), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events.schema == events_schema(EVENT)
    assert decoded.events.row(0, named=True) == {
        "toy_id": "t1",
        "event_timestamp": datetime(2026, 2, 28, 22, 30, tzinfo=UTC),
        "pieces": 3,
        "price": 2.5,
        "gift": True,
        "note": "with ribbon",
        "returned_at": None,
        "rating": 5,
        "kafka_partition": 2,
        "kafka_offset": 17,
        "created_timestamp": CREATED,
    }


HOSTILE = {
    "a tombstone": (None, "tombstone"),
    "nothing at all": (b"", "not JSON"),
    "not JSON": (b"{toy_id: t1}", "not JSON"),
    "half a record": (changed()[:-10], "not JSON"),
    "broken UTF-8": (changed(toy_id="@").replace(b"@", b"\xff\xfe"), "not JSON"),
    "a lone surrogate": (changed(toy_id="@").replace(b"@", rb"\ud800"), "not JSON"),
    "a NaN literal": (changed(price=math.nan), "not JSON"),
    "an infinity literal": (changed(price=math.inf), "not JSON"),
    "a number beyond a double": (changed(price=0.5).replace(b"0.5", b"1e999"), "not JSON"),
    "an array": (b"[1, 2]", "list"),
    "a string": (b'"t1"', "str"),
    "a number": (b"7", "int"),
    "null": (b"null", "NoneType"),
    "JSON a million brackets deep": (b"[" * 1_000_000, "not JSON"),
    "a missing id": (without("toy_id"), "'toy_id' is missing or null"),
    "a missing time": (without("event_timestamp"), "'event_timestamp' is missing or null"),
    "a null where none may be": (changed(price=None), "'price' is missing or null"),
    "a number for a string": (changed(toy_id=12), "'toy_id' is a int, expected string"),
    "an object for a string": (changed(note={"a": 1}), "'note' is a dict, expected string"),
    "a string for a number": (changed(price="2.5"), "'price' is a str, expected float"),
    "a bool for a float": (changed(price=True), "'price' is a bool, expected float"),
    "a bool for an int": (changed(pieces=True), "'pieces' is a bool, expected int"),
    "a float for an int": (changed(pieces=3.0), "'pieces' is a float, expected int"),
    "an int for a bool": (changed(gift=1), "'gift' is a int, expected bool"),
    "an array for a number": (changed(rating=[5]), "'rating' is a list, expected int"),
    "an int of 65 bits": (changed(pieces=2**63), "beyond 64 bits"),
    "an int of 300 digits": (changed(pieces=10**300), "'pieces' is a float, expected int"),
    "an int of 400 digits": (changed(price=10**400), "not JSON"),
    "a naive time": (changed(event_timestamp="2026-02-28T23:30:00"), "a time with a zone|ISO 8601"),
    "a date": (changed(event_timestamp="2026-02-28"), "ISO 8601"),
    "a time that is none": (changed(event_timestamp="2026-02-30T00:00:00Z"), "ISO 8601"),
    "seconds for a time": (changed(event_timestamp=1_772_000_000), "'event_timestamp' is a int, expected timestamp"),
    "a novel for a time": (changed(event_timestamp="x" * 500_000), "ISO 8601"),
    "a broken optional time": (changed(returned_at="yesterday"), "'returned_at' is 'yesterday'"),
    "a time before the common era": (changed(event_timestamp="-0044-03-15T12:00:00Z"), "event_timestamp"),
    "a time in the year 0": (changed(event_timestamp="0000-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 1": (changed(event_timestamp="0001-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 262,000": (changed(event_timestamp="+262000-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 9999": (changed(event_timestamp="9999-12-31T23:59:59Z"), "event_timestamp"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_event_becomes_a_dead_letter_and_its_neighbours_survive(what: str) -> None:
    value, reason = HOSTILE[what]
    batch = [record(changed(toy_id="before"), 4), record(value, 5), record(changed(toy_id="after"), 6)]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.events["toy_id"].to_list() == ["before", "after"]
    assert decoded.dead_letters.schema == DEAD_LETTER_SCHEMA
    letter = decoded.dead_letters.row(0, named=True)
    assert (letter["topic"], letter["kafka_offset"], letter["key"], letter["value"]) == (EVENT.topic, 5, b"key", value)
    assert pl.Series([letter["reason"]]).str.contains(reason).all(), letter["reason"]
    assert len(letter["reason"]) < 300


def test_the_widest_numbers_and_unknown_fields_are_no_reason_to_refuse() -> None:
    batch = [
        record(changed(pieces=2**63 - 1, price=7, extra={"a": [1]})),
        record(changed(pieces=-(2**63) + 1, price=1.7976931348623157e308), 1),
        record(without("note"), 2),
    ]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events["pieces"].to_list() == [2**63 - 1, -(2**63) + 1, 3]
    assert decoded.events["price"].to_list() == [7.0, 1.7976931348623157e308, 2.5]
    assert decoded.events["note"].to_list() == ["with ribbon", "with ribbon", None]


def test_a_batch_of_nothing_but_dead_letters_keeps_the_columns_of_events() -> None:
    decoded = decode(Records.of([record(None)]), EVENT, CREATED)
    assert decoded.events.is_empty()
    assert decoded.events.schema == events_schema(EVENT)


def test_no_records_are_no_events() -> None:
    decoded = decode(Records.of([]), EVENT, CREATED)
    assert decoded.events.schema == events_schema(EVENT)
    assert decoded.dead_letters.schema == DEAD_LETTER_SCHEMA


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
records = (
    st.none()
    | st.binary(max_size=20)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(GOOD)), json_values).map(lambda fields: changed(**fields))
    | st.datetimes().map(lambda at: changed(event_timestamp=at.isoformat() + "Z"))
    | st.just(changed())
)


@given(st.lists(records, max_size=8))
@example([changed(price=10**400), changed()])
def test_every_record_comes_out_exactly_once(values: list[bytes | None]) -> None:
    batch = [record(value, offset, offset % 3) for offset, value in enumerate(values)]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    came_out = decoded.events["kafka_offset"].to_list() + decoded.dead_letters["kafka_offset"].to_list()
    assert sorted(came_out) == list(range(len(values)))
    for offset, value in enumerate(values):
        if value == changed():
            assert offset in decoded.events["kafka_offset"]
    assert decoded.dead_letters["reason"].is_not_null().all()
    required = [f.name for f in EVENT.fields if not f.nullable]
    assert decoded.events.select(pl.col(required).is_null().any()).sum_horizontal().sum() == 0
    # Python's own clock must be able to hold them: everything downstream computes with them.
    assert all(at.tzinfo is not None for at in decoded.events["event_timestamp"].to_list())


texts = st.text(st.characters(codec="utf-8"), max_size=8)
times = st.integers(0, 7_258_118_400_000_000 - 1).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
rows = st.fixed_dictionaries(
    {
        "toy_id": texts,
        "event_timestamp": times,
        "pieces": st.integers(-(2**63) + 1, 2**63 - 1),
        "price": st.floats(allow_nan=False, allow_infinity=False),
        "gift": st.booleans(),
        "note": st.none() | texts,
        "returned_at": st.none() | times,
        "rating": st.none() | st.integers(0, 5),
    }
)


@given(st.lists(rows, max_size=5))
def test_what_was_encoded_is_decoded_to_the_same(drawn: list[dict[str, object]]) -> None:
    events = pl.DataFrame(drawn, schema=EVENT.schema_)
    decoded = decode(Records.of(record(value, i) for i, value in enumerate(encode(events, EVENT))), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events.select(events.columns).equals(events)
