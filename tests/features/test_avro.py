from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import CREATED
from toys_avro import AT, GOOD, SCHEMA, changed, event_with, framed, only_reason, read, with_fields
from toys_avro import event as event  # a fixture
from toys_avro import files as files  # a fixture

from features.avro import WriterSchemas
from features.events import encode, events_schema
from perennial.errors import UsageError
from pipelines.spec import EventSpec


def test_a_framed_record_becomes_an_event(event: EventSpec) -> None:
    decoded = read([framed(GOOD)], event)
    assert decoded.events.schema == events_schema(event)
    assert decoded.events.row(0, named=True) == {
        **GOOD,
        "kafka_partition": 0,
        "kafka_offset": 0,
        "created_timestamp": CREATED,
        "extra": None,
    }


def test_the_frame_is_a_zero_byte_the_id_with_its_highest_byte_first_and_the_record(tmp_path: Path) -> None:
    """Bytes by hand, after Avro's specification: lengths and numbers are zigzag varints."""
    path = tmp_path / "s.avsc"
    path.write_text(json.dumps(SCHEMA))
    event = event_with({258: path})
    micros = int((AT - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) << 1
    varint = b""
    while micros >= 0x80:
        varint, micros = varint + bytes([micros & 0x7F | 0x80]), micros >> 7
    varint += bytes([micros])
    body = b"\x04t1" + varint + b"\x06" + b"\0\0\0\0\0\0\x04\x40" + b"\x01" + b"\x02\x08note" + b"\0"
    row = read([b"\0\0\0\x01\x02" + body], event).events.row(0, named=True)
    assert {name: row[name] for name in GOOD} == changed(note="note")


HOSTILE = {
    "a tombstone": (None, "tombstone"),
    "nothing at all": (b"", "Confluent's framing"),
    "four bytes": (b"\0\0\0\0", "Confluent's framing"),
    "JSON": (json.dumps({"toy_id": "t1"}).encode(), "it starts with b'{\"toy', expected a zero byte"),
    "a frame around nothing": (b"\0\0\0\0\x07", "not a record of Avro schema 7: EOFError"),
    "an unknown id": (
        framed(GOOD, number=99),
        "Avro schema 99 is in no file of the event's avro_schemas, and no registry",
    ),
    "a truncated record": (framed(GOOD)[:-3], "not a record of Avro schema 7"),
    "bytes left over": (framed(GOOD) + b"xy", "not a record of Avro schema 7: 2 bytes left over"),
    "text that is not UTF-8": (framed(changed(toy_id="@@")).replace(b"@@", b"\xff\xfe"), "UnicodeDecodeError"),
    "a text longer than the record": (
        b"\0\0\0\0\x07" + b"\xfe\xff\xff\xff\x0f" + b"x",
        "not a record of Avro schema 7",
    ),
    "a text of negative length": (b"\0\0\0\0\x07" + b"\x03" + b"x" * 40, "not a record of Avro schema 7"),
    "a choice that there is not": (framed(changed(note=None))[:-2] + b"\x08\0", "not a record of Avro schema 7"),
    "NaN": (framed(changed(price=float("nan"))), "field 'price' is nan, not a finite number"),
    "infinity": (framed(changed(price=float("-inf"))), "field 'price' is -inf, not a finite number"),
    "an epoch of zero": (framed(changed(event_timestamp=0)), "10957 days, 0:00:00 before 2000-01-01T00:00:00"),
    "the year 2999": (framed(changed(event_timestamp=datetime(2999, 1, 1, tzinfo=UTC))), "time of 1970 to 2199"),
    "a time beyond all calendars": (
        framed(changed(event_timestamp=2**62)),
        "not a record of Avro schema 7: OverflowError",
    ),
    "a clock an hour ahead": (
        framed(changed(event_timestamp=CREATED + timedelta(hours=1))),
        "1:00:00 ahead of the clock",
    ),
    "two mebibytes": (framed(changed(note="x" * 2**21)), "more than the 1,048,576"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_event_becomes_a_dead_letter_and_its_neighbours_survive(what: str, event: EventSpec) -> None:
    value, reason = HOSTILE[what]
    told = only_reason(value, event)
    assert reason in told
    assert len(told) < 300


@given(st.binary(max_size=60), st.integers(0, 60))
def test_no_bytes_stop_the_reading(event: EventSpec, noise: bytes, cut: int) -> None:
    good = framed(GOOD)
    values = [good, noise, b"\0\0\0\0\x07" + noise, good[:cut] + noise + good[cut:], good[:cut]]
    decoded = read(list(values), event)
    assert decoded.events.height + decoded.dead_letters.height == len(values)
    assert decoded.events["kafka_offset"][0] == 0


def test_a_writer_without_an_optional_field_and_with_more_fields_is_understood(
    event: EventSpec, tmp_path: Path
) -> None:
    schema = with_fields(
        {"name": "note", "type": None},
        {"name": "gate", "type": "string"},
        {"name": "seen", "type": {"type": "record", "name": "Seen", "fields": [{"name": "by", "type": "bytes"}]}},
        {"name": "tax", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
    )
    (tmp_path / "new.avsc").write_text(json.dumps(schema))
    schemas = WriterSchemas({**event.avro_schemas, 8: tmp_path / "new.avsc"})
    row = {**GOOD, "gate": "B", "seen": {"by": b"\xff\0"}, "tax": Decimal("1.10")}
    decoded = read([framed(row, schema, 8), framed(GOOD)], event, schemas)
    assert decoded.dead_letters.is_empty()
    assert decoded.events["note"].to_list() == [None, "with ribbon"]
    told = decoded.events["extra"].to_list()
    assert told == ['{"gate":"B","seen":{"by":"/wA="},"tax":"1.10"}', None]


def test_a_writer_without_a_required_field_is_not_an_event(event: EventSpec, tmp_path: Path) -> None:
    schema = with_fields({"name": "pieces", "type": None})
    (tmp_path / "old.avsc").write_text(json.dumps(schema))
    schemas = WriterSchemas({**event.avro_schemas, 8: tmp_path / "old.avsc"})
    assert only_reason(framed(GOOD, schema, 8), event, schemas) == "field 'pieces' is missing or null"


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
RECORD = {"type": "record", "name": "Inner", "fields": [{"name": "a", "type": "int"}]}
LOGICAL: dict[str, tuple[str, Any, Any, Any]] = {
    # what: field, the writer's type, what it writes, what the event has (or the reason)
    "milliseconds": (
        "event_timestamp",
        {"type": "long", "logicalType": "timestamp-millis"},
        AT,
        AT.replace(microsecond=123_000),
    ),
    "text as a time": ("event_timestamp", "string", "2026-03-01T10:30:00+01:00", AT.replace(microsecond=0)),
    "a number as a time": ("event_timestamp", "long", 5, "is 5, an int, expected timestamp"),
    "a local time": (
        "event_timestamp",
        {"type": "long", "logicalType": "local-timestamp-micros"},
        AT,
        "a local time, expected",
    ),
    "a date as a time": (
        "returned_at",
        {"type": "int", "logicalType": "date"},
        date(2026, 3, 1),
        "a date, expected timestamp",
    ),
    "a date as text": ("note", {"type": "int", "logicalType": "date"}, date(2026, 3, 1), "2026-03-01"),
    "a decimal": ("price", DECIMAL, Decimal("19.99"), 19.99),
    "a decimal as text": ("note", DECIMAL, Decimal("19.90"), "19.90"),
    "a decimal as an int": ("pieces", DECIMAL, Decimal("3.00"), "'pieces' is Decimal('3.00'), a Decimal, expected int"),
    "a uuid": ("note", {"type": "string", "logicalType": "uuid"}, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "an enum": ("note", {"type": "enum", "name": "Kind", "symbols": ["SOLD", "LENT"]}, "LENT", "LENT"),
    "a float of 32 bits": ("price", "float", 2.5, 2.5),
    "an int of 32 bits": ("pieces", "int", -7, -7),
    "an int as a float": ("price", "long", 7, 7.0),
    "a choice of types": ("note", ["null", "int", "string"], "x", "x"),
    "another choice": ("note", ["null", "int", "string"], 5, "field 'note' is 5, an int, expected string"),
    "a record as text": ("note", RECORD, {"a": 1}, "field 'note' is {'a': 1}, a dict, expected string"),
    "bytes as text": ("note", "bytes", b"x", "field 'note' is b'x', a bytes, expected string"),
    "a null where none may be": ("pieces", ["null", "long"], None, "field 'pieces' is missing or null"),
}


@pytest.mark.parametrize("what", LOGICAL)
def test_types_of_avro_are_read_as_the_fields_of_the_event_or_refused(
    what: str, event: EventSpec, tmp_path: Path
) -> None:
    field, type_, written, expected = LOGICAL[what]
    schema = with_fields({"name": field, "type": type_})
    (tmp_path / "s.avsc").write_text(json.dumps(schema))
    decoded = read([framed(changed(**{field: written}), schema, 8)], event, WriterSchemas({8: tmp_path / "s.avsc"}))
    if decoded.events.height:
        assert decoded.events[field].to_list() == [expected]
        assert decoded.events["extra"].to_list() == [None]
    else:
        assert expected in decoded.dead_letters["reason"][0]


rows = st.fixed_dictionaries(
    {
        "toy_id": st.text(st.characters(codec="utf-8"), max_size=8),
        "event_timestamp": st.datetimes(datetime(2000, 1, 1), datetime(2026, 3, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        "pieces": st.integers(-(2**63), 2**63 - 1),
        "price": st.floats(-1e150, 1e150),
        "gift": st.booleans(),
        "note": st.none() | st.text(st.characters(codec="utf-8"), max_size=8),
        "returned_at": st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    }
)


@given(st.lists(rows, max_size=5))
def test_what_was_encoded_is_decoded_to_the_same(event: EventSpec, drawn: list[dict[str, object]]) -> None:
    events = pl.DataFrame(drawn, schema=event.schema_)
    decoded = read(list(encode(events, event)), event)
    assert decoded.dead_letters.is_empty()
    assert decoded.events.select(events.columns).equals(events)


def test_events_are_not_encoded_without_a_schema_or_by_one_that_does_not_fit(event: EventSpec, tmp_path: Path) -> None:
    events = pl.DataFrame([GOOD], schema=event.schema_)
    with pytest.raises(UsageError, match=r"toys\.sold\.v1 has no avro_schemas to write with"):
        encode(events, event_with({}))
    (tmp_path / "s.avsc").write_text(json.dumps(with_fields({"name": "pieces", "type": "string"})))
    with pytest.raises(UsageError, match=r"an event does not fit .*s\.avsc"):
        encode(events, event_with({9: tmp_path / "s.avsc"}))
