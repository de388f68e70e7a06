"""Documents, a dict each -> columns of an event, and what its spec does not name, kept aside as JSON text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from features.event_fields import MAX_EVENT_BYTES, column
from pipelines.spec import EventSpec

EXTRA = "extra"


@dataclass(frozen=True)
class Read:
    """What some values of records hold.

    Attributes:
        frame: valid events, the columns of their EventSpec and `extra`.
        places: of each event, the position of its value.
        refused: why a value is no valid event, by its position.
    """

    frame: pl.DataFrame
    places: Sequence[int]
    refused: dict[int, str]


def unreadable(value: bytes | None) -> str | None:
    """Why a value is not even read; None if it is."""
    if value is None:
        return "the record has no value (a tombstone)"
    if len(value) > MAX_EVENT_BYTES:
        return f"the value has {len(value):,} bytes, more than the {MAX_EVENT_BYTES:,} that an event may have"
    return None


def read_documents(
    documents: Sequence[dict[str, Any]], places: Sequence[int], refused: dict[int, str], event: EventSpec, now: datetime
) -> Read:
    """Check documents against the event's fields.

    Args:
        documents: n of them, by field name. They are emptied.
        places: of each document, the position of its value.
        refused: reasons so far, by position; a document's first one is added.
        event: what the documents should be.
        now: the clock that event times are held against, UTC.

    Returns:
        Each document once, and what was refused before.
    """
    columns = []
    unfit: dict[int, str] = {}
    for field in event.fields:
        values = [document.pop(field.name, None) for document in documents]
        series, reasons = column(values, field, event, now)
        columns.append(series)
        unfit = {**reasons, **unfit}
    extra: list[str | None] = []
    for i, rest in enumerate(documents):
        try:
            extra.append(orjson.dumps(rest, default=_as_json).decode() if rest else None)
        except TypeError as error:  # nested deeper than can be written
            extra.append(None)
            unfit.setdefault(i, f"its unknown fields cannot be kept as JSON: {error}")
    frame = pl.DataFrame([*columns, pl.Series(EXTRA, extra, dtype=pl.String)])
    if not unfit:
        return Read(frame, places, refused)
    kept = [i not in unfit for i in range(len(documents))]
    return Read(
        frame.filter(pl.Series(kept, dtype=pl.Boolean)),
        [place for place, keep in zip(places, kept, strict=True) if keep],
        {**refused, **{places[i]: reason for i, reason in unfit.items()}},
    )


def _as_json(value: object) -> str:
    """What Avro has and JSON has not."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
