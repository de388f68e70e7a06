"""A line of the contract by itself: in words, and which columns cannot meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import polars as pl

from pipelines.spec import Expectation

Kind = Literal["numeric", "categorical", "any"]


def describe(expectation: Expectation) -> str:
    """An expectation in a few words, such as `distance between 0 and 6000`."""
    column = expectation.column
    match expectation.kind:
        case "not_null":
            return f"{column} not null"
        case "unique":
            return f"{column} unique"
        case "matches":
            return f"{column} matches {expectation.pattern}"
        case "in_set":
            shown = ", ".join(expectation.values[:8]) + (", .." if len(expectation.values) > 8 else "")
            return f"{column} in {{{shown}}}"
        case "between":
            low, high = expectation.minimum, expectation.maximum
            if low is None:
                return f"{column} at most {high:g}"
            return f"{column} at least {low:g}" if high is None else f"{column} between {low:g} and {high:g}"


def misfits(
    schema: Mapping[str, pl.DataType], expectations: Sequence[Expectation], columns: Mapping[str, Kind]
) -> dict[str, str]:
    """By column, why no row of a batch with this schema can be what the contract and the pipeline say."""
    found: dict[str, str] = {}
    for column, kind in columns.items():
        if why := _wrong_kind(column, kind, schema):
            found[column] = why
    for expectation in expectations:
        if expectation.column not in found and (why := _misfit(expectation, schema)):
            found[expectation.column] = why
    return found


def _wrong_kind(column: str, kind: Kind, schema: Mapping[str, pl.DataType]) -> str | None:
    dtype = schema.get(column)
    if dtype is None:
        return _missing(column, schema)
    fits = {"numeric": dtype.is_numeric() or dtype == pl.Boolean, "categorical": _is_text(dtype), "any": True}[kind]
    return None if fits or dtype == pl.Null else f"column {column!r} is {dtype}, but the pipeline says {kind}"


def _misfit(expectation: Expectation, schema: Mapping[str, pl.DataType]) -> str | None:
    dtype = schema.get(expectation.column)
    if dtype is None:
        return _missing(expectation.column, schema)
    if dtype == pl.Null or expectation.kind == "not_null":
        return None
    fits = {
        "between": dtype.is_numeric() or dtype == pl.Boolean,
        "matches": _is_text(dtype),
        "in_set": _is_text(dtype) or dtype.is_numeric() or dtype == pl.Boolean,
        "unique": not dtype.is_nested() and dtype != pl.Object,
    }[expectation.kind]
    return None if fits else f"column {expectation.column!r} is {dtype}, which cannot meet {describe(expectation)}"


def _missing(column: str, schema: Mapping[str, pl.DataType]) -> str:
    return f"column {column!r} is missing; there is {', '.join(sorted(schema)) or 'none'}"


def _is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
