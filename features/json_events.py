"""Values of Kafka records, JSON objects -> columns. Many good ones at once by Arrow, otherwise one by one by orjson."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl

from features.documents import Read, read_documents, unreadable
from features.event_fields import LARGEST_FLOAT, MAX_EVENT_BYTES, may_be_null, time_limits, times_of
from pipelines.spec import EventSpec

if TYPE_CHECKING:
    import pyarrow as pa

MAX_JOINED_BYTES = 64 << 20
WIDE = range(-(2**63), 2**64)  # what orjson reads as integers
_MAYBE_WIDER = re.compile(rb"[0-9]{19}")


def read_json(values: pa.Array[Any], event: EventSpec, now: datetime) -> Read:
    """Read JSON objects; what comes out does not depend on which of them are read together.

    Args:
        values: n values of records, bytes or null, some thousands at most.
        event: what they should be.
        now: the clock that event times are held against, UTC.

    Returns:
        Every value once: as a row, or refused with a reason.
    """
    frame = _all_good(values, event, now)
    if frame is not None:
        return Read(frame, range(len(values)), {})
    places: list[int] = []
    documents: list[dict[str, Any]] = []
    names = {field.name for field in event.fields}
    refused: dict[int, str] = {}
    for place, value in enumerate(values.to_pylist()):
        reason = unreadable(value)
        if reason is None:
            try:
                document = orjson.loads(value or b"")
            except orjson.JSONDecodeError as error:
                reason = f"not JSON: {error}"
            else:
                if type(document) is dict:
                    _keep_wide_integers(document, value or b"", document.keys() - names)
                    places.append(place)
                    documents.append(document)
                    continue
                reason = f"a JSON {type(document).__name__}, expected an object"
        refused[place] = reason
    return read_documents(documents, places, refused, event, now)


def _keep_wide_integers(document: dict[str, Any], value: bytes, unknown: Set[str]) -> None:
    """Give the unknown fields their integers beyond 64 bits as they were written; orjson has made floats of them."""
    if unknown and _MAYBE_WIDER.search(value):
        with suppress(RecursionError):  # nested deeper than is kept
            whole = json.loads(value, parse_int=_integer)
            document.update({name: whole[name] for name in unknown})


def _integer(text: str) -> int | orjson.Fragment:
    return orjson.Fragment(text) if len(text) > 20 or int(text) not in WIDE else int(text)


def _all_good(values: pa.Array[Any], event: EventSpec, now: datetime) -> pl.DataFrame | None:
    """The values as a frame, if every one of them is a valid event without unknown fields; otherwise None.

    Where Arrow reads JSON otherwise than orjson does, or does not tell, the answer is None too.
    """
    import pyarrow as pa

    if not len(values) or values.null_count:
        return None
    _, places, text = values.buffers()
    ends = np.frombuffer(places, np.int32)[values.offset : values.offset + len(values) + 1]
    lengths, letters = np.diff(ends), np.frombuffer(text or b"", np.uint8)
    if lengths.min() < 2 or lengths.max() > MAX_EVENT_BYTES or lengths.sum() > MAX_JOINED_BYTES:
        return None
    # Each starts and ends as an object does, and within an object no brace that closes is followed by one that opens. So
    # no object reaches over from one value to the next, and as many rows as values are one row a value.
    if (letters[ends[:-1]] != ord("{")).any() or (letters[ends[1:] - 1] != ord("}")).any():
        return None
    joined = _lines(values)
    if not np.frombuffer(joined, np.uint8).all():  # a zero byte, which Arrow takes for the end of the text
        return None
    try:
        table = _read_rows(joined, event)
        table.validate(full=True)  # reading does not look whether text is UTF-8
    except pa.ArrowInvalid:
        return None
    if table.num_rows != len(values):
        return None
    for index, field in enumerate(event.fields):
        column = table.column(index).combine_chunks()
        if column.null_count and not may_be_null(field, event):
            return None
        if field.type == "timestamp":
            column = times_of(column, *time_limits(field, event, now))
            if column is None:
                return None
            table = table.set_column(index, field.name, column)
    frame = pl.DataFrame(pl.from_arrow(table))
    for field in event.fields:
        if field.type == "float":
            numbers = frame.get_column(field.name)
            # It reads NaN and infinity; and the integer -0 as -0.0, where orjson says 0.
            if not (numbers.abs() <= LARGEST_FLOAT).all() or ((numbers == 0) & (1 / numbers < 0)).any():
                return None
    return frame.with_columns(extra=pl.lit(None, pl.String))


def _lines(values: pa.Array[Any]) -> pa.Buffer:
    """The values with a newline between one and the next, which no JSON has within a string."""
    import pyarrow as pa
    from pyarrow import compute

    return compute.binary_join(pa.ListArray.from_arrays([0, len(values)], values), b"\n")[0].as_buffer()


def _read_rows(joined: pa.Buffer, event: EventSpec) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.string(),
    }
    schema = pa.schema([(field.name, types[field.type]) for field in event.fields])
    return json.read_json(
        pa.BufferReader(joined),
        # In one block, and in this thread: the records of the next poll are unpacked beside it.
        read_options=json.ReadOptions(use_threads=False, block_size=joined.size + 1),
        parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
