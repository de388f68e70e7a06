from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from schema_registry import Registry
from schema_registry import registry as registry  # a fixture
from toys_avro import GOOD, SCHEMA, event_with, framed, only_reason, read, with_fields
from toys_avro import event as event  # a fixture
from toys_avro import files as files  # a fixture

from features.avro import WriterSchemas
from perennial.errors import UnreachableError, UsageError
from pipelines.spec import EventSpec


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


def test_a_schema_of_the_registry_is_asked_for_once(registry: Registry) -> None:
    event, number = event_with({}), registry.register("toys.sold.v1-value", SCHEMA)
    schemas = WriterSchemas({}, f"{registry.url}/")
    for _ in range(3):
        assert read([framed(GOOD, number=number)] * 5, event, schemas).events.height == 5
    assert registry.asked == [f"/schemas/ids/{number}"]


def test_the_registrys_password_is_in_no_log(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    event, number = event_with({}), registry.register("toys.sold.v1-value", SCHEMA)
    schemas = WriterSchemas({}, registry.url.replace("http://", "http://ann:s3cret@"))
    assert read([framed(GOOD, number=number)], event, schemas).events.height == 1
    assert "schemas/ids" in caplog.text
    assert "s3cret" not in caplog.text


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
