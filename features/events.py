"""Kafka records -> typed events, a batch at a time. What is not a valid event becomes a dead letter, never an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import orjson
import polars as pl

from features.avro import WriterSchemas, encode_avro, read_avro
from features.documents import EXTRA
from features.json_events import read_json
from features.lake import CREATED_TIMESTAMP
from features.records import Records
from pipelines.spec import EventSpec

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
CHUNK_ROWS = 4_096


@dataclass(frozen=True)
class Decoded:
    """What a batch of records holds.

    Attributes:
        events: valid events, as `events_schema`.
        dead_letters: the rest, as `DEAD_LETTER_SCHEMA`; one row a record that is not a valid event.
    """

    events: pl.DataFrame
    dead_letters: pl.DataFrame


def events_schema(event: EventSpec) -> dict[str, pl.DataType]:
    """Columns of the lake table of a topic."""
    return {**event.schema_, **KAFKA_COLUMNS, EXTRA: pl.String()}


def decode(
    records: Records,
    event: EventSpec,
    created: datetime,
    now: datetime | None = None,
    schemas: WriterSchemas | None = None,
) -> Decoded:
    """Decode a batch of records of one topic.

    What becomes of a record does not depend on its neighbours.

    Args:
        records: records in any order.
        event: what an event of this topic looks like. Fields it does not name are kept as JSON text in `extra`; floats in
            it are 64 bits wide, integers as they were written.
        created: when the batch was taken in, UTC.
        now: the clock that event times are held against, UTC; None = `created`.
        schemas: of a topic in Avro, its writers' schemas; None = the event's files and no registry.

    Returns:
        Every record once: as an event, or as a dead letter with the reason.

    Raises:
        UnreachableError: the schema registry does not answer. Nothing is decoded then.
        UsageError: a file of a schema cannot be read.
    """
    now = now or created
    if event.encoding == "avro" and schemas is None:
        schemas = WriterSchemas(event.avro_schemas)
    frames = [pl.DataFrame(schema={**event.schema_, EXTRA: pl.String()})]
    places: list[int] = []
    refused: dict[int, str] = {}
    for start in range(0, len(records), CHUNK_ROWS):
        values = records.values.slice(start, CHUNK_ROWS)
        read = read_avro(values, event, now, schemas) if schemas is not None else read_json(values, event, now)
        frames.append(read.frame)
        places.extend(start + place for place in read.places)
        refused.update((start + place, reason) for place, reason in read.refused.items())
    partitions, offsets = pl.Series(records.partitions), pl.Series(records.offsets)
    events = pl.concat(frames).with_columns(
        kafka_partition=partitions.gather(places),
        kafka_offset=offsets.gather(places),
        created_timestamp=pl.lit(created).cast(pl.Datetime("us", "UTC")),
    )
    return Decoded(events.select(list(events_schema(event))), _dead_letters(records, refused, event.topic, created))


def _dead_letters(records: Records, refused: Mapping[int, str], topic: str, created: datetime) -> pl.DataFrame:
    if not refused:
        return pl.DataFrame(schema=DEAD_LETTER_SCHEMA)
    places = sorted(refused)
    return pl.DataFrame(
        {
            "topic": topic,
            "kafka_partition": pl.Series(records.partitions).gather(places),
            "kafka_offset": pl.Series(records.offsets).gather(places),
            CREATED_TIMESTAMP: created,
            "key": pl.Series(records.keys).gather(places),
            "value": pl.Series(records.values).gather(places),
            "reason": [refused[place] for place in places],
        },
        schema=DEAD_LETTER_SCHEMA,
    )


def encode(events: pl.DataFrame, event: EventSpec) -> list[bytes]:
    """Events as values of records of their topic, in order: the inverse of `decode`.

    Args:
        events: the columns of the event's spec.

    Returns:
        A value a row; in Avro, by the event's file of the highest id.

    Raises:
        UsageError: Avro, and the event has no file of a schema, or the events do not fit it.
    """
    return encode_avro(events, event) if event.encoding == "avro" else encode_json(events, event)


def encode_json(events: pl.DataFrame, event: EventSpec) -> list[bytes]:
    """Events as JSON, in order: one UTF-8 object a row; timestamps as ISO 8601 with a zone."""
    as_json = [
        pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") if isinstance(dtype, pl.Datetime) else pl.col(name)
        for name, dtype in event.schema_.items()
    ]
    rows = events.select(as_json).to_dicts()
    return [orjson.dumps(row) for row in rows]
