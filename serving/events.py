"""Events of a request -> a frame in their spec's schema, or a sentence that names the field.

It accepts what the consumer of the topic accepts, but refuses the whole request at its first flaw, and is fast for few
rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from features.events import FIRST_TIME, LAST_TIME
from perennial.errors import UsageError
from pipelines.spec import POLARS_TYPES, EventField, EventSpec

INT64 = range(-(2**63), 2**63)


def events_frame(events: Sequence[Mapping[str, Any]], spec: EventSpec) -> pl.DataFrame:
    """Typed columns of JSON events.

    Args:
        events: n JSON objects; timestamps are ISO 8601 strings with a zone. Fields the spec does not name are ignored,
            a nullable field may be absent.
        spec: what an event of the topic looks like.

    Returns:
        n rows in order, the columns of the spec.

    Raises:
        UsageError: a field is missing, null or of another type.
    """
    columns = []
    for field in spec.fields:
        values = [_value(event, field, spec, i) for i, event in enumerate(events)]
        columns.append(pl.Series(field.name, values, dtype=POLARS_TYPES[field.type]))
    return pl.DataFrame(columns)


def _value(event: Mapping[str, Any], field: EventField, spec: EventSpec, row: int) -> Any:
    value = event.get(field.name)
    kind = type(value)
    if value is None:
        if field.nullable:
            return None
        how = "is null" if field.name in event else "is missing"
        raise UsageError(f"event {row}: field {field.name!r} {how}; {spec.topic} needs a {field.type}")
    if field.type == "timestamp" and kind is str:
        return _timestamp(value, field, row)
    if field.type == "float" and (math.isfinite(value) if kind is float else kind is int and value in INT64):
        return float(value)
    if field.type == "int" and kind is int and value in INT64:
        return value
    if (field.type == "string" and kind is str and _is_text(value)) or (field.type == "bool" and kind is bool):
        return value
    raise UsageError(f"event {row}: field {field.name!r} is {value!r:.100}; {spec.topic} needs a {field.type}")


def _is_text(value: str) -> bool:
    """Whether it can be stored: JSON allows half a surrogate pair, UTF-8 does not."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _timestamp(value: str, field: EventField, row: int) -> datetime:
    try:
        parsed = datetime.fromisoformat(value)
        # The range is the consumer's: what the topic refuses, a request is not answered for.
        if parsed.tzinfo is not None and FIRST_TIME <= parsed < LAST_TIME:
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):  # not a time, or one whose UTC lies before the year 1
        pass
    raise UsageError(
        f"event {row}: field {field.name!r} is {value!r:.100}; give an ISO 8601 time with its zone, "
        "of 1970 to 2199, such as 2013-03-01T14:05:00Z"
    )
