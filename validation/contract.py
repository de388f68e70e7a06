"""What valid data means: the pipeline's contract, judged by Great Expectations on every batch.

The only module that touches Great Expectations.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from perennial.errors import UsageError
from pipelines.spec import Expectation
from validation.verdict import Status, Verdict, worst

FAILED = "failed_expectation"
"""The column of quarantined rows that names what they failed, several separated by `; `."""

# The context and its batch definition are shared by all calls, and a batch is looked up by name while it is validated.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class ValidationResult:
    """A batch, parted by its contract.

    Attributes:
        valid: rows that met every expectation, in order.
        quarantined: rows that did not, in order, with one more column, `failed_expectation`.
        verdict: FAIL when an expectation was met by fewer rows than it demands, or a column is not there or of a type
            that cannot meet it; INCONCLUSIVE when there was nothing to check.
    """

    valid: pl.DataFrame
    quarantined: pl.DataFrame
    verdict: Verdict


def validate(frame: pl.DataFrame, expectations: tuple[Expectation, ...], name: str) -> ValidationResult:
    """Judge a batch by its contract.

    Null and NaN are missing: `not_null` refuses them, every other expectation passes over them, and its `mostly` is a
    share of the rows that have a value. A row that fails is quarantined even where `mostly` lets the batch pass.

    Args:
        frame: the batch, one row an event or a feature vector.
        expectations: the contract.
        name: what the batch is, for the sentences.

    Raises:
        UsageError: an expectation lacks what its kind needs (a bound, a set, a pattern that compiles).
    """
    for expectation in expectations:
        _check(expectation)
    if not frame.height:
        return _part(frame, {}, Verdict(Status.INCONCLUSIVE, f"{name}: no rows to validate", {"rows": 0}))
    if not expectations:
        return _part(
            frame, {}, Verdict(Status.INCONCLUSIVE, f"{name}: the contract expects nothing", {"rows": frame.height})
        )
    misfits = {e: why for e in expectations if (why := _misfit(e, frame.schema))}
    judged = _judge(frame, [e for e in expectations if e not in misfits])
    every_row = range(frame.height)
    failed: dict[Expectation, Sequence[int]] = dict.fromkeys(misfits, every_row)
    verdicts = [Verdict(Status.FAIL, why) for why in misfits.values()]
    for expectation, (verdict, rows) in judged.items():
        failed[expectation] = rows
        verdicts.append(verdict)
    overall = worst(verdicts)
    parted = _part(frame, failed, overall)
    measurements = {
        "rows": frame.height,
        "quarantined_rows": parted.quarantined.height,
        "failed_expectations": sum(v.status is Status.FAIL for v in verdicts),
    }
    reason = overall.reason
    if overall.passed:
        reason = f"{frame.height} rows met {len(verdicts)} expectations, {parted.quarantined.height} quarantined"
    return ValidationResult(
        parted.valid, parted.quarantined, Verdict(overall.status, f"{name}: {reason}", measurements)
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


def _misfit(expectation: Expectation, schema: Mapping[str, pl.DataType]) -> str | None:
    """Why no row of a batch with this schema can meet the expectation, if so."""
    dtype = schema.get(expectation.column)
    if dtype is None:
        return f"column {expectation.column!r} is missing; there is {', '.join(sorted(schema)) or 'none'}"
    if dtype == pl.Null or expectation.kind == "not_null":
        return None
    text = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    fits = {
        "between": dtype.is_numeric() or dtype == pl.Boolean,
        "matches": text,
        "in_set": text or dtype.is_numeric() or dtype == pl.Boolean,
        "unique": not dtype.is_nested() and dtype != pl.Object,
    }[expectation.kind]
    return None if fits else f"column {expectation.column!r} is {dtype}, which cannot meet {describe(expectation)}"


def _judge(
    frame: pl.DataFrame, expectations: Sequence[Expectation]
) -> dict[Expectation, tuple[Verdict, Sequence[int]]]:
    """Each expectation's verdict and the positions of the rows that fail it."""
    if not expectations:
        return {}
    columns = list(dict.fromkeys(e.column for e in expectations))
    results = _run(frame.select(_plain(c, frame.schema[c]) for c in columns), frame.schema, expectations)
    return {e: _read(e, results[i], frame) for i, e in enumerate(expectations)}


def _plain(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column in a type that means the same in pandas."""
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.col(column).cast(pl.String)
    if dtype.is_nested() or dtype == pl.Object:
        # Only whether there is a value can be asked of these.
        return pl.when(pl.col(column).is_not_null()).then(True).alias(column)
    return pl.col(column).cast(pl.Float64) if dtype.is_decimal() else pl.col(column)


def _run(plain: pl.DataFrame, schema: Mapping[str, pl.DataType], expectations: Sequence[Expectation]) -> dict[int, Any]:
    """Great Expectations' results by the expectation's position."""
    with _ONE_AT_A_TIME:
        batch_definition = _batch_definition()
        from great_expectations import ExpectationSuite

        suite = ExpectationSuite(
            name="contract", expectations=[_compile(e, i, schema[e.column]) for i, e in enumerate(expectations)]
        )
        validated = batch_definition.get_batch({"dataframe": plain.to_pandas()}).validate(
            suite, result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False}
        )
    # The results come grouped by column, not in the suite's order.
    return {one.expectation_config.meta["position"]: one for one in validated.results}


def _compile(expectation: Expectation, position: int, dtype: pl.DataType) -> Any:
    import great_expectations.expectations as gxe

    told: dict[str, Any] = {
        "column": expectation.column,
        "mostly": expectation.mostly,
        "meta": {"position": position},
    }
    match expectation.kind:
        case "not_null":
            return gxe.ExpectColumnValuesToNotBeNull(**told)
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(**told)
        case "matches":
            return gxe.ExpectColumnValuesToMatchRegex(regex=expectation.pattern, **told)
        case "in_set":
            return gxe.ExpectColumnValuesToBeInSet(value_set=_as_type(expectation.values, dtype), **told)
        case "between":
            return gxe.ExpectColumnValuesToBeBetween(
                min_value=expectation.minimum, max_value=expectation.maximum, **told
            )


def _as_type(values: tuple[str, ...], dtype: pl.DataType) -> list[Any]:
    """The set's values in the column's type; one that has no form there can never be met, and is left out."""
    if dtype == pl.Boolean:
        return [v.lower() == "true" for v in values if v.lower() in ("true", "false")]
    if dtype.is_numeric():
        return pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls().to_list()
    return list(values)


def _read(expectation: Expectation, result: Any, frame: pl.DataFrame) -> tuple[Verdict, Sequence[int]]:
    what = describe(expectation)
    told = result.result
    if "unexpected_index_list" not in told:
        raised = next((i["exception_message"] for i in _raised(result.exception_info)), "no result")
        return Verdict(Status.ERROR, f"{what} could not be checked: {raised}"), ()
    rows: list[int] = told["unexpected_index_list"] or []
    checked = frame.height - told.get("missing_count", 0)
    if not checked:
        return Verdict(Status.INCONCLUSIVE, f"{what}: all {frame.height} rows are missing"), ()
    if result.success:
        return Verdict(Status.PASS, what), rows
    met = 1 - len(rows) / checked
    return (
        Verdict(
            Status.FAIL, f"{what} fails in {len(rows)} of {checked} rows ({met:.2%} met, {expectation.mostly:.2%} due)"
        ),
        rows,
    )


def _raised(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Great Expectations tells of one exception flat, of several by metric."""
    flat = [info] if "exception_message" in info else [i for i in info.values() if isinstance(i, Mapping)]
    return [i for i in flat if i.get("exception_message")]


def _part(frame: pl.DataFrame, failed: Mapping[Expectation, Sequence[int]], verdict: Verdict) -> ValidationResult:
    reasons: dict[int, list[str]] = {}
    for expectation, rows in failed.items():
        what = describe(expectation) if len(rows) else ""
        for row in rows:
            reasons.setdefault(row, []).append(what)
    told = pl.Series(FAILED, ["; ".join(reasons[i]) if i in reasons else None for i in range(frame.height)], pl.String)
    quarantined = frame.drop(FAILED, strict=False).with_columns(told).filter(told.is_not_null())
    return ValidationResult(frame.filter(told.is_null()), quarantined, verdict)


@lru_cache(maxsize=1)
def _batch_definition() -> Any:
    """One ephemeral context for the process: making it and its data source costs more than judging a batch."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(enable=False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("perennial").add_dataframe_asset("batch")
    return asset.add_batch_definition_whole_dataframe("whole")
