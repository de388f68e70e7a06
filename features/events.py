"""Kafka records -> typed events, a batch at a time. What is not a valid event becomes a dead letter, never an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl

from features.lake import CREATED_TIMESTAMP
from pipelines.spec import POLARS_TYPES, EventField, EventSpec, FieldType

KAFKA_COLUMNS: dict[str, pl.DataType] = {
    "kafka_partition": pl.Int32(),
    "kafka_offset": pl.Int64(),
    CREATED_TIMESTAMP: pl.Datetime("us", "UTC"),
}
DEAD_LETTER_SCHEMA: dict[str, pl.DataType] = {
    "topic": pl.String(),
    **KAFKA_COLUMNS,
    "key": pl.Binary(),
    "value": pl.Binary(),
    "reason": pl.String(),
}
JSON_TYPES: dict[FieldType, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "timestamp": (str,),
}
INT64_MAX = 2**63 - 1
# Beyond these years the clocks of Python or of pandas end, and one absurd time would stop every batch that holds it.
FIRST_TIME, LAST_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Records:
    """Kafka records of one topic, a column each, in the order in which they were read.

    Attributes:
        partitions: of each record.
        offsets: of each record.
        keys: of each record, or None.
        values: of each record, or None (a tombstone).
    """

    partitions: Sequence[int]
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, bytes | None, bytes | None]]) -> Records:
        """Records from (partition, offset, key, value) each."""
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return cls(*columns)

    def rows(self) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
        """Each record as (partition, offset, key, value)."""
        return zip(self.partitions, self.offsets, self.keys, self.values, strict=True)


@dataclass(frozen=True)
class Decoded:
    """What a batch of records holds.

    Attributes:
        events: valid events, the columns of their EventSpec and `KAFKA_COLUMNS`.
        dead_letters: the rest, as `DEAD_LETTER_SCHEMA`; one row a record that is not a valid event.
    """

    events: pl.DataFrame
    dead_letters: pl.DataFrame


def events_schema(event: EventSpec) -> dict[str, pl.DataType]:
    """Columns of the lake table of a topic."""
    return {**event.schema_, **KAFKA_COLUMNS}


def decode(records: Records, event: EventSpec, created: datetime) -> Decoded:
    """Decode a batch of JSON records of one topic.

    Args:
        records: records in any order.
        event: what an event of this topic looks like. Fields it does not name are ignored.
        created: when the batch was taken in, UTC.

    Returns:
        Every record once: as an event, or as a dead letter with the reason.
    """
    documents, reasons = _parse(records)
    columns: dict[str, pl.Series] = {}
    for field in event.fields:
        columns[field.name] = _column([d.get(field.name) for d in documents], field, reasons)
    frame = pl.DataFrame(columns).with_columns(
        kafka_partition=pl.Series(records.partitions, dtype=pl.Int32),
        kafka_offset=pl.Series(records.offsets, dtype=pl.Int64),
        created_timestamp=pl.lit(created).cast(pl.Datetime("us", "UTC")),
    )
    good = pl.Series([r is None for r in reasons], dtype=pl.Boolean)
    return Decoded(frame.filter(good), _dead_letters(records, reasons, event.topic, created))


def _parse(records: Records) -> tuple[list[dict[str, Any]], list[str | None]]:
    documents: list[dict[str, Any]] = []
    reasons: list[str | None] = []
    for value in records.values:
        reason = None
        document: Any = None
        if value is None:
            reason = "the record has no value (a tombstone)"
        else:
            try:
                document = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                reason = f"not JSON: {error}"
            if reason is None and type(document) is not dict:
                reason = f"a JSON {type(document).__name__}, expected an object"
        documents.append(document if reason is None else {})
        reasons.append(reason)
    return documents, reasons


def _column(values: list[Any], field: EventField, reasons: list[str | None]) -> pl.Series:
    """One field of all documents as a series; a value that does not fit sets its record's reason and becomes null."""
    allowed = JSON_TYPES[field.type]
    types = set(map(type, values))
    if not types <= set(allowed) or (int in types and field.type == "int"):
        values = [_checked(value, field, allowed, i, reasons) for i, value in enumerate(values)]
    if field.type == "timestamp":
        return _timestamps(values, field, reasons)
    if field.type == "float":
        values = [None if v is None else float(v) for v in values]
    return pl.Series(field.name, values, dtype=POLARS_TYPES[field.type], strict=True)


def _checked(value: Any, field: EventField, allowed: tuple[type, ...], i: int, reasons: list[str | None]) -> Any:
    if value is None:
        if not field.nullable:
            reasons[i] = reasons[i] or f"field {field.name!r} is missing or null"
        return None
    if type(value) not in allowed:
        reasons[i] = reasons[i] or f"field {field.name!r} is a {type(value).__name__}, expected {field.type}"
        return None
    if field.type == "int" and not -INT64_MAX <= value <= INT64_MAX:
        reasons[i] = reasons[i] or f"field {field.name!r} is {value}, beyond 64 bits"
        return None
    return value


def _timestamps(values: list[Any], field: EventField, reasons: list[str | None]) -> pl.Series:
    text = pl.Series(field.name, values, dtype=pl.String)
    parsed = text.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False)
    for i in (parsed.is_null() & text.is_not_null()).arg_true():
        reasons[i] = reasons[i] or f"field {field.name!r} is {text[i]!r:.60}, expected an ISO 8601 time with a zone"
    within = parsed.is_between(FIRST_TIME, LAST_TIME, closed="left")
    for i in (~within).arg_true():
        reasons[i] = reasons[i] or f"field {field.name!r} is {text[i]!r:.60}, expected a time of 1970 to 2199"
    return parsed


def _dead_letters(records: Records, reasons: Sequence[str | None], topic: str, created: datetime) -> pl.DataFrame:
    rows = [
        (topic, partition, offset, created, key, value, reason)
        for (partition, offset, key, value), reason in zip(records.rows(), reasons, strict=True)
        if reason is not None
    ]
    return pl.DataFrame(rows, schema=DEAD_LETTER_SCHEMA, orient="row")


def encode(events: pl.DataFrame, event: EventSpec) -> list[bytes]:
    """Events as JSON records, in order: the inverse of `decode`.

    Args:
        events: the columns of the event's spec.

    Returns:
        One UTF-8 JSON object a row; timestamps as ISO 8601 with a zone.
    """
    as_json = [
        pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") if isinstance(dtype, pl.Datetime) else pl.col(name)
        for name, dtype in event.schema_.items()
    ]
    rows = events.select(as_json).to_dicts()
    return [orjson.dumps(row) for row in rows]
