"""What valid data means: the pipeline's contract, judged by Great Expectations on every batch.

Nothing here learns from data: a bound, a set, a column or a type changes where the pipeline's code says so, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from perennial.errors import UsageError
from pipelines.spec import Expectation
from validation.suite import Found, run_suite
from validation.verdict import Status, Verdict, worst

FAILED = "failed_expectation"
"""The column of quarantined rows that names what they failed, several separated by `; `."""

# Judged at once: what Great Expectations holds grows with the rows. A million of twelve lines take 450 MB whole, so 220.
SLICE_ROWS = 100_000
EXAMPLES, EXAMPLE_LENGTH = 20, 200
Kind = Literal["numeric", "categorical", "any"]


@dataclass(frozen=True)
class Judgement:
    """What one line of the contract found in a batch.

    Attributes:
        expectation: the line.
        verdict: FAIL when fewer rows met it than it demands.
        missing_rows: rows without a value, which it passed over.
        checked_rows: rows that have one.
        failed_rows: of those, the rows that did not meet it.
        examples: values that did not, the most frequent first, each with its count: at most `EXAMPLES`, cut at
            `EXAMPLE_LENGTH`.
    """

    expectation: Expectation
    verdict: Verdict
    missing_rows: int
    checked_rows: int
    failed_rows: int
    examples: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ValidationResult:
    """A batch, parted by its contract.

    Attributes:
        valid: rows that met every expectation, in order.
        quarantined: rows that did not, in order, with one more column, `failed_expectation`.
        verdict: FAIL when an expectation was met by fewer rows than it demands, or a column is not there or of a type
            that cannot meet it; INCONCLUSIVE when there was nothing to check.
        judgements: what each line of the contract found, in the contract's order.
        misfits: what is wrong with the batch's columns, a sentence each. The rows themselves may be fine then: it is the
            code that makes them, or the contract, that must be mended.
    """

    valid: pl.DataFrame
    quarantined: pl.DataFrame
    verdict: Verdict
    judgements: tuple[Judgement, ...] = ()
    misfits: tuple[str, ...] = ()


def fingerprint(expectations: Sequence[Expectation]) -> str:
    """A short hash of a contract: another one when, and only when, another line is in it; order does not matter."""
    lines = {json.dumps(e.model_dump(mode="json", exclude_defaults=True), sort_keys=True) for e in expectations}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def validate(
    frame: pl.DataFrame,
    expectations: tuple[Expectation, ...],
    name: str,
    columns: Mapping[str, Kind] | None = None,
    met: pl.DataFrame | None = None,
) -> ValidationResult:
    """Judge a batch by its contract.

    Null and NaN are missing: `not_null` refuses them, every other expectation passes over them, and its `mostly` is a
    share of the rows that have a value. A row that fails is quarantined even where `mostly` lets the batch pass.

    Args:
        frame: the batch, one row an event or a feature vector.
        expectations: the contract.
        name: whose batch it is, for the sentences and the suite.
        columns: the columns there must be, each with its kind: one that is not there or of another kind fails the batch,
            any other is told as new. None = only what the expectations name is looked at.
        met: more rows of the batch that met this contract when they were judged the first time. They count, and are not
            judged again: that would take six seconds for a million rows. They come first in `valid`.

    Raises:
        UsageError: an expectation lacks what its kind needs (a bound, a set, a pattern that compiles).
    """
    for expectation in expectations:
        _check(expectation)
    # The same line twice counts once.
    lines = tuple(dict.fromkeys(expectations))
    rows = frame.height + (met.height if met is not None else 0)
    if not rows:
        return _part(frame, {}, Verdict(Status.INCONCLUSIVE, f"{name}: no rows to validate", {"rows": 0}))
    misfits = _misfits(frame.schema, lines, columns or {})
    new = sorted(set(frame.columns) - set(columns) - {e.column for e in lines}) if columns is not None else []
    asked = [e for e in lines if e.column not in misfits]
    found = dict(zip(asked, _judge(frame, asked, name), strict=True))
    every_row = range(frame.height)
    failed: dict[str, Sequence[int]] = {
        **{why: every_row for column, why in misfits.items() if column not in {e.column for e in lines}},
        **{describe(e): found[e].rows if e in found else every_row for e in lines},
    }
    judgements = tuple(
        _judgement(e, frame, met, found[e]) if e in found else _unfit(e, rows, misfits[e.column]) for e in lines
    )
    verdicts = [Verdict(Status.FAIL, why) for why in misfits.values()]
    verdicts += [j.verdict for j in judgements if j.expectation in found]
    if not verdicts:
        verdicts = [Verdict(Status.INCONCLUSIVE, "the contract expects nothing")]
    overall = worst(verdicts)
    parted = _part(frame, failed, overall)
    measurements = {
        "rows": rows,
        "quarantined_rows": parted.quarantined.height,
        "failed_expectations": sum(j.verdict.status is Status.FAIL for j in judgements),
    }
    reason = overall.reason
    if overall.passed:
        reason = f"{rows} rows met {len(verdicts)} expectations, {parted.quarantined.height} quarantined"
    if new:
        reason += f"; new columns that the pipeline does not name: {', '.join(f'{c} ({frame.schema[c]})' for c in new)}"
    return ValidationResult(
        parted.valid if met is None else pl.concat([met, parted.valid], how="diagonal_relaxed"),
        parted.quarantined,
        Verdict(overall.status, f"{name}: {reason}", measurements),
        judgements,
        tuple(misfits.values()),
    )


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


def _check(expectation: Expectation) -> None:
    lacks = {
        "between": expectation.minimum is None and expectation.maximum is None and "a minimum or a maximum",
        "in_set": not expectation.values and "values",
        "matches": not expectation.pattern and "a pattern",
    }.get(expectation.kind)
    if lacks:
        raise UsageError(f"the expectation {expectation.kind!r} of column {expectation.column!r} needs {lacks}.")
    try:
        re.compile(expectation.pattern or "")
    except re.error as error:
        raise UsageError(
            f"the pattern {expectation.pattern!r} of column {expectation.column!r} is no regular expression: {error}."
        ) from error


def _misfits(
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


def _judge(frame: pl.DataFrame, expectations: Sequence[Expectation], name: str) -> list[Found]:
    """What is found of each expectation: `unique` in all rows together, every other a slice at a time."""
    whole = [e for e in expectations if e.kind == "unique"]
    by_row = [e for e in expectations if e.kind != "unique"]
    found = dict(zip(whole, run_suite(frame, whole, name), strict=True)) if frame.height else {}
    missing = dict.fromkeys(by_row, 0)
    rows: dict[Expectation, list[int]] = {e: [] for e in by_row}
    errors: dict[Expectation, str] = {}
    for start in range(0, frame.height, SLICE_ROWS):
        some = run_suite(frame.slice(start, SLICE_ROWS), by_row, name)
        for expectation, one in zip(by_row, some, strict=True):
            missing[expectation] += one.missing_rows
            rows[expectation] += [start + row for row in one.rows]
            if one.error:
                errors[expectation] = one.error
    found |= {e: Found(missing[e], tuple(rows[e]), errors.get(e)) for e in by_row}
    return [found.get(e, Found(0, ())) for e in expectations]


def _judgement(expectation: Expectation, frame: pl.DataFrame, met: pl.DataFrame | None, found: Found) -> Judgement:
    missing, rows = found.missing_rows, frame.height
    if met is not None:
        rows += met.height
        missing += 0 if expectation.kind == "not_null" else _missing_rows(met.get_column(expectation.column))
    checked, failing = rows - missing, len(found.rows)
    what = describe(expectation)
    if found.error:
        verdict = Verdict(Status.ERROR, f"{what} could not be checked: {found.error}")
    elif not checked:
        verdict = Verdict(Status.INCONCLUSIVE, f"{what}: all {rows} rows are missing")
    elif (share := (checked - failing) / checked) >= expectation.mostly:
        verdict = Verdict(Status.PASS, what)
    else:
        due = f"({share:.2%} met, {expectation.mostly:.2%} due)"
        verdict = Verdict(Status.FAIL, f"{what} fails in {failing} of {checked} rows {due}")
    return Judgement(expectation, verdict, missing, checked, failing, _examples(expectation, frame, found.rows))


def _unfit(expectation: Expectation, rows: int, why: str) -> Judgement:
    return Judgement(expectation, Verdict(Status.FAIL, why), 0, rows, rows, ())


def _missing_rows(column: pl.Series) -> int:
    nan = int(column.is_nan().sum()) if column.dtype.is_float() else 0
    return column.null_count() + nan


def _examples(expectation: Expectation, frame: pl.DataFrame, rows: Sequence[int]) -> tuple[tuple[str, int], ...]:
    if not rows or expectation.kind == "not_null":
        return ()
    values = frame.get_column(expectation.column).gather(list(rows)).alias("value")
    counts = values.value_counts(sort=True).head(EXAMPLES)
    return tuple((str(value)[:EXAMPLE_LENGTH], count) for value, count in counts.iter_rows())


def _part(frame: pl.DataFrame, failed: Mapping[str, Sequence[int]], verdict: Verdict) -> ValidationResult:
    reasons: dict[int, list[str]] = {}
    for what, rows in failed.items():
        for row in rows:
            reasons.setdefault(row, []).append(what)
    told = pl.Series(FAILED, ["; ".join(reasons[i]) if i in reasons else None for i in range(frame.height)], pl.String)
    quarantined = frame.drop(FAILED, strict=False).with_columns(told).filter(told.is_not_null())
    return ValidationResult(frame.filter(told.is_null()), quarantined, verdict)
