"""The event in Avro: the schema of its writer, and values that were written with it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from toys import CREATED, EVENT

from features.avro import WriterSchemas
from features.events import Decoded, Records, decode
from pipelines.spec import EventSpec

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
    """The event without its rating, in Avro."""
    changed = {"fields": EVENT.fields[:-1], "encoding": "avro", "avro_schemas": files}
    return EventSpec.model_validate({**dict(EVENT), **changed})


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
