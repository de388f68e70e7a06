"""What a field of an event may hold: one value at a time, which says why not, and a column at a time, which is fast.

The two agree: a column is taken whole only where each of its values would be taken alone. The consumer of a topic and the
scoring service judge by the same rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from reprlib import Repr
from typing import TYPE_CHECKING, Any
from uuid import UUID

import polars as pl

from perennial.wording import one
from pipelines.spec import POLARS_TYPES, EventField, EventSpec, FieldType

if TYPE_CHECKING:
    import pyarrow as pa

MAX_EVENT_BYTES = 1 << 20
# Beyond these years the clocks of Python or of pandas end, and one absurd time would stop every batch that holds it.
FIRST_TIME, LAST_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
INT64 = range(-(2**63), 2**63)
# Sums of numbers up to it stay numbers, whatever the window.
LARGEST_FLOAT = 1e150
# Exactly what Python, Arrow and people agree on: no week dates, no 24:00, no leap second, no time without a zone.
ISO_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])"
)
_ISO_TIME = re.compile(ISO_TIME)

# It neither walks down deep values nor writes out long ones, as repr() would.
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 60


class UnfitError(ValueError):
    """A value does not fit its field; the message says why, with the field's name and the value."""


def shown(value: object) -> str:
    """A value as a sentence can hold it: at most about 100 characters, however long or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def fitting(value: Any, field: EventField, event: EventSpec, now: datetime) -> Any:
    """One value as its column holds it.

    Args:
        value: as JSON or Avro gave it; None if it is missing.
        field: the field.
        event: the event that has this field.
        now: the clock that event times are held against, UTC.

    Returns:
        The value; None only where the field may be null.

    Raises:
        UnfitError: it does not fit.
    """
    if value is None:
        if may_be_null(field, event):
            return None
        raise UnfitError(f"field {field.name!r} is missing or null")
    convert = _CONVERSIONS[field.type].get(type(value))
    if convert is None:
        raise UnfitError(
            f"field {field.name!r} is {shown(value)}, {one(type(value).__name__)}, expected {_EXPECTED[field.type]}"
        )
    try:
        converted = convert(value)
    except (ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, UnfitError) else f"expected {_EXPECTED[field.type]}"
        raise UnfitError(f"field {field.name!r} is {shown(value)}, {reason}") from error
    if field.type == "timestamp":
        _check_time(converted, value, field, event, now)
        converted = converted.astimezone(UTC)
    return converted


def may_be_null(field: EventField, event: EventSpec) -> bool:
    """Whether null is a value of it; never where it identifies the event."""
    return field.nullable and field.name not in event.event_id and field.name != event.event_timestamp


def time_limits(field: EventField, event: EventSpec, now: datetime) -> tuple[datetime, datetime]:
    """The first and the last time that a timestamp field may hold."""
    if field.name != event.event_timestamp:
        return FIRST_TIME, LAST_TIME
    ahead_s = min(event.max_ahead_s, (LAST_TIME - now).total_seconds())
    return max(FIRST_TIME, event.not_before), now + timedelta(seconds=ahead_s)


def _check_time(at: datetime, value: Any, field: EventField, event: EventSpec, now: datetime) -> None:
    first, last = time_limits(field, event, now)
    if first <= at <= last:
        return
    is_now = f"field {field.name!r} is {shown(value if isinstance(value, str) else value.isoformat())}, "
    if not FIRST_TIME <= at <= LAST_TIME:
        raise UnfitError(f"{is_now}expected a time of 1970 to 2199")
    if at < first:
        raise UnfitError(f"{is_now}{first - at} before {first.isoformat()}, the earliest that can be")
    raise UnfitError(
        f"{is_now}{at - now} ahead of the clock ({now.isoformat()}), at most {event.max_ahead_s} s is allowed"
    )


def _text(value: str) -> str:
    if not value.isascii():
        value.encode()  # JSON allows half a surrogate pair, UTF-8 does not; the error is a ValueError
    return value


def _int64(value: int) -> int:
    if value not in INT64:
        raise UnfitError("beyond 64 bits")
    return value


def _finite(value: float | Decimal) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise UnfitError("not a finite number")
    if abs(number) > LARGEST_FLOAT:
        raise UnfitError(f"beyond {LARGEST_FLOAT:g}; the sum of a few would be no number")
    return number


def _iso_time(value: str) -> datetime:
    if not _ISO_TIME.fullmatch(value):
        raise ValueError(value)
    return datetime.fromisoformat(value)


def _zoned(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise UnfitError("a local time, expected one with a zone")
    return value


# What JSON and Avro's logical types give, by what a field may take. A bool is no int, a float no int.
_CONVERSIONS: Mapping[FieldType, Mapping[type, Callable[[Any], Any]]] = {
    "string": {str: _text, UUID: str, Decimal: str, date: date.isoformat, time: time.isoformat},
    "int": {int: _int64},
    "float": {float: _finite, int: _finite, Decimal: _finite},
    "bool": {bool: bool},
    "timestamp": {str: _iso_time, datetime: _zoned},
}
_EXPECTED: Mapping[FieldType, str] = {
    "string": "string",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "timestamp": "timestamp (ISO 8601 with a zone)",
}
_PLAIN: Mapping[FieldType, type] = {"string": str, "int": int, "float": float, "bool": bool, "timestamp": str}


def column(
    values: Sequence[Any], field: EventField, event: EventSpec, now: datetime
) -> tuple[pl.Series, dict[int, str]]:
    """One field of many documents.

    Args:
        values: n values as JSON or Avro gave them, None where one is missing.
        field: the field.
        event: the event that has this field.
        now: the clock that event times are held against, UTC.

    Returns:
        n values as the field's column, null where one does not fit; and why not, by position.
    """
    taken = _whole(values, field, event, now)
    if taken is not None:
        return taken, {}
    plain = _PLAIN[field.type]
    fit, reasons = _one_by_one(values, field, event, now, lambda value: type(value) is plain)
    taken = _whole(fit, field, event, now, null=True)
    if taken is None:
        fit, reasons = _one_by_one(values, field, event, now, lambda _: False)
        taken = pl.Series(field.name, fit, dtype=POLARS_TYPES[field.type])
    return taken, reasons


def _one_by_one(
    values: Sequence[Any], field: EventField, event: EventSpec, now: datetime, skip: Callable[[Any], bool]
) -> tuple[list[Any], dict[int, str]]:
    """Each value that is not skipped as its column holds it, None where it does not fit; and why not, by position."""
    fit = list(values)
    reasons: dict[int, str] = {}
    for i, value in enumerate(values):
        if skip(value):
            continue
        try:
            fit[i] = fitting(value, field, event, now)
        except UnfitError as error:
            fit[i] = None
            reasons[i] = str(error)
    return fit, reasons


def _whole(
    values: Sequence[Any], field: EventField, event: EventSpec, now: datetime, *, null: bool = False
) -> pl.Series | None:
    """Values as a column, if all of them are of its plain type and fit, or are null where `null` or the field allows it."""
    types = set(map(type, values)) - {_PLAIN[field.type]}
    if types - {type(None)} or (types and not (null or may_be_null(field, event))):
        return None
    if field.type == "timestamp":
        import pyarrow as pa

        times = times_of(pa.array(values, type=pa.string()), *time_limits(field, event, now))
        return None if times is None else pl.Series(field.name, pl.from_arrow(times), dtype=POLARS_TYPES[field.type])
    try:
        series = pl.Series(field.name, values, dtype=POLARS_TYPES[field.type], strict=True)
    except (TypeError, OverflowError):  # beyond 64 bits
        return None
    return series if field.type != "float" or (series.abs() <= LARGEST_FLOAT).all() else None


def times_of(texts: pa.Array, first: datetime, last: datetime) -> pa.Array | None:
    """ISO 8601 times of a column, in microseconds UTC; None if one of them is not such a time, or not in first..last."""
    import pyarrow as pa
    from pyarrow import compute

    if compute.all(compute.match_substring_regex(texts, f"^(?:{ISO_TIME})$")).as_py() is False:
        return None
    try:
        times = texts.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:  # no such day, or more digits than microseconds
        return None
    # As integers: a time may lie where no datetime can.
    within = compute.min_max(times.cast(pa.int64())).as_py()
    if within["min"] is not None and not (
        _microseconds(first) <= within["min"] and within["max"] <= _microseconds(last)
    ):
        return None
    return times


def _microseconds(at: datetime) -> int:
    return (at - FIRST_TIME) // timedelta(microseconds=1)
