"""Events of a request -> a frame in their spec's schema, or a sentence that names the field.

It accepts what the consumer of the topic accepts, by the same rules, but refuses the whole request at its first flaw, and
is fast for few rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl

from features.event_fields import MAX_EVENT_BYTES, UnfitError, fitting
from perennial.errors import UsageError
from pipelines.spec import POLARS_TYPES, EventSpec


def events_frame(events: Sequence[Mapping[str, Any]], spec: EventSpec, now: datetime | None = None) -> pl.DataFrame:
    """Typed columns of JSON events.

    Args:
        events: n JSON objects; timestamps are ISO 8601 strings with a zone. Fields the spec does not name are left out,
            a nullable field may be absent.
        spec: what an event of the topic looks like.
        now: the clock that event times are held against, UTC; None = the wall clock.

    Returns:
        n rows in order, the columns of the spec.

    Raises:
        UsageError: a field is missing, null, of another type or out of its range, or an event is too large.
    """
    now = now or datetime.now(UTC)
    columns = []
    for field in spec.fields:
        values = []
        for row, event in enumerate(events):
            try:
                values.append(fitting(event.get(field.name), field, spec, now))
            except UnfitError as error:
                raise UsageError(f"event {row}: {error}; mend it, or see the fields of {spec.topic}") from error
        columns.append(pl.Series(field.name, values, dtype=POLARS_TYPES[field.type]))
    for row, event in enumerate(events):
        _check_size(event, row)
    return pl.DataFrame(columns)


def _check_size(event: Mapping[str, Any], row: int) -> None:
    try:
        size = len(_written(event))
    except (TypeError, ValueError, RecursionError) as error:  # deeper than can be kept, or half a surrogate pair
        raise UsageError(
            f"event {row}: a field that is not its topic's cannot be kept ({error}); leave it out"
        ) from error
    if size > MAX_EVENT_BYTES:
        raise UsageError(
            f"event {row}: it has {size:,} bytes, more than the {MAX_EVENT_BYTES:,} that an event may have; send less"
        )


def _written(event: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event)
    except TypeError:  # as the consumer would find it: an integer beyond 64 bits is a float there
        return orjson.dumps(orjson.loads(json.dumps(event)))
