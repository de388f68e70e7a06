from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import httpx
import polars as pl
import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from features.avro import WriterSchemas
from features.events import Decoded, Records, decode, encode, events_schema
from perennial.errors import UnreachableError, UsageError
from pipelines.spec import EventField, EventSpec

CREATED = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT = datetime(2026, 3, 1, 9, 30, 0, 123456, tzinfo=UTC)
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
SCHEMA = {
    "type": "record",
    "name": "Sold",
    "namespace": "toys",
    "fields": [
        {"name": "toy_id", "type": "string"},
        {"name": "event_timestamp", "type": MICROS},
        {"name": "pieces", "type": "long"},
        {"name": "price", "type": "double"},
        {"name": "gift", "type": "boolean"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "returned_at", "type": ["null", MICROS], "default": None},
    ],
}
GOOD = {
    "toy_id": "t1",
    "event_timestamp": AT,
    "pieces": 3,
    "price": 2.5,
    "gift": True,
    "note": "with ribbon",
    "returned_at": None,
}


def event_with(files: Mapping[int, Path]) -> EventSpec:
    return EventSpec(
        topic="toys.sold.v1",
        fields=(
            EventField(name="toy_id", type="string"),
            EventField(name="event_timestamp", type="timestamp"),
            EventField(name="pieces", type="int"),
            EventField(name="price", type="float"),
            EventField(name="gift", type="bool"),
            EventField(name="note", type="string", nullable=True),
            EventField(name="returned_at", type="timestamp", nullable=True),
        ),
        event_timestamp="event_timestamp",
        event_id=("toy_id",),
        partition_key="toy_id",
        encoding="avro",
        avro_schemas=files,
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    path = tmp_path_factory.mktemp("schemas") / "sold.avsc"
    path.write_text(json.dumps(SCHEMA))
    return {7: path}


@pytest.fixture(scope="session")
def event(files: dict[int, Path]) -> EventSpec:
    return event_with(files)


def framed(row: Mapping[str, Any], schema: Any = SCHEMA, number: int = 7) -> bytes:
    stream = io.BytesIO()
    schemaless_writer(stream, parse_schema(schema), row)
    return b"\0" + number.to_bytes(4, "big") + stream.getvalue()


def changed(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def with_fields(*fields: Mapping[str, Any]) -> dict[str, Any]:
    """The writer's schema with some fields of other types or more of them; a field of type None is left out."""
    types = {f["name"]: f for f in [*SCHEMA["fields"], *fields]}  # type: ignore[misc]
    return {**SCHEMA, "fields": [f for f in types.values() if f["type"] is not None]}


def read(values: list[bytes | None], event: EventSpec, schemas: WriterSchemas | None = None) -> Decoded:
    return decode(Records.of((0, i, b"k", v) for i, v in enumerate(values)), event, CREATED, schemas=schemas)


def only_reason(value: bytes | None, event: EventSpec, schemas: WriterSchemas | None = None) -> str:
    decoded = read([framed(changed(toy_id="before")), value, framed(changed(toy_id="after"))], event, schemas)
    assert decoded.events["toy_id"].to_list() == ["before", "after"]
    assert decoded.dead_letters["value"].to_list() == [value]
    return str(decoded.dead_letters["reason"][0])


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


def doubling(levels: int, leaf: Any = "null") -> dict[str, Any]:
    """R0 holds R1 twice, R1 holds R2 twice, ...; the last record holds the leaf twice: 2 + 4 + ... + 2^levels fields."""
    within = leaf
    for level in reversed(range(levels)):
        again = within["name"] if isinstance(within, dict) else within
        fields = [{"name": "a", "type": within}, {"name": "b", "type": again}]
        within = {"type": "record", "name": f"R{level}", "fields": fields}
    return dict(within)


UNSAFE = {
    "a list without end": (
        {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]},
        b"\x02" * 1_000_000 + b"\0",
        "its type 'toys.Node' holds itself",
    ),
    "2^62 nulls": ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", "take no bytes"),
    "2^62 empty records": (
        {"type": "array", "items": {"type": "record", "name": "Empty", "fields": [{"name": "a", "type": "null"}]}},
        b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f",
        "take no bytes",
    ),
}


def test_a_schema_whose_records_double_is_read_up_to_ten_thousand_fields(event: EventSpec, registry: Registry) -> None:
    """Of 12 levels there are 8,190 fields; with the field that holds them and the event's seven, 8,198."""
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    number = registry.register("toys", with_fields({"name": "more", "type": doubling(12)}))
    value = b"\0" + number.to_bytes(4, "big") + framed(GOOD)[5:]
    decoded = read([value], event, schemas)
    assert decoded.dead_letters.is_empty()
    assert decoded.events["extra"][0].count("null") == 2**12


@pytest.mark.parametrize("levels", [13, 18, 80])
@pytest.mark.parametrize("leaf", ["null", "int"])
@pytest.mark.parametrize("around", ["itself", "a choice", "an array", "a map"])
def test_a_schema_whose_records_double_further_is_not_read(
    levels: int, leaf: str, around: str, event: EventSpec, registry: Registry
) -> None:
    """Of 13 levels there are 16,382 fields, of 80 more than could ever be counted one by one."""
    record = doubling(levels, leaf)
    types: dict[str, Any] = {
        "itself": record,
        "a choice": ["null", record],
        "an array": {"type": "array", "items": {**record, "fields": [*record["fields"], {"name": "c", "type": "int"}]}},
        "a map": {"type": "map", "values": record},
    }
    number = registry.register("toys", with_fields({"name": "more", "type": types[around]}))
    value = b"\0" + number.to_bytes(4, "big") + framed(GOOD)[5:]
    told = only_reason(value, event, WriterSchemas(event.avro_schemas, registry.url))
    assert told.startswith(f"Avro schema {number} is not read: ")
    assert "more than 10,000 fields" in told


@pytest.mark.parametrize("what", UNSAFE)
def test_a_schema_in_which_few_bytes_hold_no_end_of_values_is_not_read(
    what: str, event: EventSpec, registry: Registry
) -> None:
    """It would end the process, or never end."""
    type_, body, reason = UNSAFE[what]
    number = registry.register("toys", with_fields({"name": "more", "type": type_}))
    value = b"\0" + number.to_bytes(4, "big") + framed(GOOD)[5:] + body
    told = only_reason(value, event, WriterSchemas(event.avro_schemas, registry.url))
    assert told.startswith(f"Avro schema {number} is not read: ")
    assert reason in told


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


class Registry:
    """Confluent's documented REST API over schemas that were really registered, for none can be installed here.

    POST /subjects/{subject}/versions stores a schema and answers its id; GET /schemas/ids/{id} answers it, or 404 with
    error 40403; GET /subjects/{subject}/versions/{version} answers it, or 404 with error 40401 or 40402. It can be told
    to fail, and counts what it was asked.
    """

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.fails: tuple[int, bytes] | None = None
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = next((n for n, s in registry.schemas.items() if s == told), None)
                number = known or 100_000 + len(registry.schemas)
                registry.schemas[number] = told
                registry.subjects.setdefault(unquote(self.path.split("/")[2]), []).append(number)
                self.answer(200, json.dumps({"id": number}).encode())

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                _, kind, name, *version = self.path.partition("?")[0].split("/")
                if registry.fails:
                    self.answer(*registry.fails)
                elif kind == "schemas":
                    self.tell(registry.schemas.get(int(version[0])), 40403)
                elif numbers := registry.subjects.get(unquote(name)):
                    at = int(version[1]) - 1
                    self.tell(registry.schemas[numbers[at]] if at < len(numbers) else None, 40402)
                else:
                    self.tell(None, 40401)

            def tell(self, schema: dict[str, Any] | None, error_code: int) -> None:
                if schema:
                    self.answer(200, json.dumps(schema).encode())
                else:
                    self.answer(404, json.dumps({"error_code": error_code, "message": "not found"}).encode())

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def register(self, subject: str, schema: Any, **more: Any) -> int:
        body = {"schema": json.dumps(schema), **more}
        return int(httpx.post(f"{self.url}/subjects/{subject}/versions", json=body).raise_for_status().json()["id"])

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    running = Registry()
    yield running
    running.stop()


def test_a_schema_of_the_registry_is_asked_for_once(registry: Registry) -> None:
    event, number = event_with({}), registry.register("toys.sold.v1-value", SCHEMA)
    schemas = WriterSchemas({}, f"{registry.url}/")
    for _ in range(3):
        assert read([framed(GOOD, number=number)] * 5, event, schemas).events.height == 5
    assert registry.asked == [f"/schemas/ids/{number}"]


def test_a_file_comes_before_the_registry(registry: Registry, event: EventSpec) -> None:
    assert read([framed(GOOD)], event, WriterSchemas(event.avro_schemas, registry.url)).events.height == 1
    assert registry.asked == []


def test_an_id_that_the_registry_does_not_know_is_a_dead_letter_until_it_does(
    registry: Registry, event: EventSpec
) -> None:
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    value = framed(GOOD, number=100_000)
    assert only_reason(value, event, schemas) == f"Avro schema 100000 is not known to the registry at {registry.url}"
    assert registry.register("toys", SCHEMA) == 100_000
    assert read([value], event, schemas).events.height == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"error_code":50001,"message":"store"}'),
        (503, b""),
        (401, b'{"error_code":40101}'),
        (404, b"<html>no such page</html>"),
        (200, b"<html>a portal</html>"),
        (200, b"[]"),
    ],
)
def test_a_registry_that_fails_loses_nothing(registry: Registry, event: EventSpec, status: int, body: bytes) -> None:
    number = registry.register("toys", SCHEMA)
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    registry.fails = status, body
    with pytest.raises(UnreachableError, match=rf"answered {status} when .* PERENNIAL_SCHEMA_REGISTRY_URL"):
        read([framed(GOOD), framed(GOOD, number=number)], event, schemas)
    registry.fails = None
    assert read([framed(GOOD), framed(GOOD, number=number)], event, schemas).events.height == 2


def test_a_registry_that_is_not_there_is_named_without_its_password(event: EventSpec, free_port: int) -> None:
    schemas = WriterSchemas({}, f"http://user:secret@127.0.0.1:{free_port}")
    with pytest.raises(
        UnreachableError, match=rf"answers at http://127\.0\.0\.1:{free_port} .*_SCHEMA_REGISTRY_URL"
    ) as told:
        read([framed(GOOD)], event, schemas)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("schema", "more", "reason"),
    [
        ("string", {}, "is no record's"),
        ({"type": "record", "name": "A", "fields": [{"name": "a", "type": "nothing"}]}, {}, "cannot be parsed"),
        ({"type": "nothing"}, {}, "cannot be parsed"),
        (SCHEMA, {"schemaType": "PROTOBUF"}, "is PROTOBUF, expected Avro"),
    ],
)
def test_what_cannot_be_read_by_its_schema_is_a_dead_letter(
    registry: Registry, event: EventSpec, schema: Any, more: dict[str, Any], reason: str
) -> None:
    number = registry.register("toys", schema, **more)
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    assert reason in only_reason(framed(GOOD, number=number), event, schemas)


GATE = {"type": "enum", "name": "toys.Gate", "symbols": ["A", "B"]}
STORE = {
    "type": "record",
    "name": "toys.Store",
    "fields": [{"name": "city", "type": "string"}, {"name": "gate", "type": "toys.Gate"}],
}


def reference(subject: str, name: str, version: int = 1) -> dict[str, Any]:
    return {"name": name, "subject": subject, "version": version}


def test_a_schema_is_read_with_the_ones_it_refers_to_and_those_they_refer_to(
    registry: Registry, event: EventSpec
) -> None:
    """What it refers to is version 1, though there is another by now; and one type is referred to on two ways."""
    to_gate = reference("toys/gates", "toys.Gate")
    registry.register("toys%2Fgates", GATE)
    registry.register("toys%2Fgates", {**GATE, "symbols": ["C"]})
    registry.register("stores", STORE, references=[to_gate])
    schema = with_fields({"name": "store", "type": "toys.Store"}, {"name": "gate", "type": ["null", "toys.Gate"]})
    number = registry.register("toys", schema, references=[reference("stores", "toys.Store"), to_gate])
    row = {**GOOD, "store": {"city": "Bonn", "gate": "B"}, "gate": "A"}
    written_out = with_fields(
        {"name": "store", "type": {**STORE, "fields": [STORE["fields"][0], {"name": "gate", "type": GATE}]}},  # type: ignore[index]
        {"name": "gate", "type": ["null", "toys.Gate"]},
    )
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    for _ in range(2):
        decoded = read([framed(row, written_out, number), framed(GOOD)], event, schemas)
        assert decoded.dead_letters.is_empty()
        assert decoded.events["extra"].to_list() == ['{"store":{"city":"Bonn","gate":"B"},"gate":"A"}', None]
    assert len(registry.asked) == 3


def test_a_reference_that_the_registry_does_not_know_is_a_dead_letter_until_it_does(
    registry: Registry, event: EventSpec
) -> None:
    schema = with_fields({"name": "gate", "type": "toys.Gate"})
    number = registry.register("toys", schema, references=[reference("gates", "toys.Gate", 2)])
    value = framed({**GOOD, "gate": "A"}, with_fields({"name": "gate", "type": GATE}), number)
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    for _ in range(2):  # without the subject, and without the version
        assert only_reason(value, event, schemas).startswith(
            "version 2 of gates, which an Avro schema refers to, is not"
        )
        registry.register("gates", GATE)
    assert read([value], event, schemas).events.height == 1


def test_references_in_a_ring_end(registry: Registry, event: EventSpec) -> None:
    one, other = reference("one", "toys.One"), reference("other", "toys.Other")
    fields = [{"name": "a", "type": "toys.Other"}]
    registry.register("one", {"type": "record", "name": "toys.One", "fields": fields}, references=[other])
    registry.register("other", {"type": "record", "name": "toys.Other", "fields": []}, references=[one])
    number = registry.register("toys", with_fields({"name": "more", "type": "toys.One"}), references=[one])
    schemas = WriterSchemas(event.avro_schemas, registry.url)
    value = framed(GOOD, number=number)
    decoded = read([value], event, schemas)
    assert decoded.events.height == 1


def test_records_that_double_from_reference_to_reference_are_not_read(registry: Registry, event: EventSpec) -> None:
    """Each of 20 subjects holds the one before it twice: 2^20 fields."""
    registry.register("r0", {"type": "record", "name": "toys.R0", "fields": [{"name": "a", "type": "null"}]})
    for level in range(1, 20):
        fields = [{"name": name, "type": f"toys.R{level - 1}"} for name in "ab"]
        schema = {"type": "record", "name": f"toys.R{level}", "fields": fields}
        registry.register(f"r{level}", schema, references=[reference(f"r{level - 1}", f"toys.R{level - 1}")])
    number = registry.register(
        "toys", with_fields({"name": "more", "type": "toys.R19"}), references=[reference("r19", "toys.R19")]
    )
    told = only_reason(framed(GOOD, number=number), event, WriterSchemas(event.avro_schemas, registry.url))
    assert "more than 10,000 fields" in told


def test_a_file_that_holds_no_schema_is_named(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.avsc", tmp_path / "empty.avsc"
    empty.write_text("{}")
    for path, sentence in ((missing, r"missing\.avsc cannot be read"), (empty, r"empty\.avsc: .* cannot be parsed")):
        with pytest.raises(UsageError, match=sentence):
            read([framed(GOOD)], event_with({7: path}))
