"""What valid data means: the pipeline's contract, judged by Great Expectations on every batch.

Nothing here learns from data: a bound, a set, a column or a type changes where the pipeline's code says so, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipelines.spec import Expectation
from validation.lines import Kind as Kind
from validation.lines import describe as describe
from validation.lines import misfits
from validation.suite import Found, run_suite
from validation.verdict import Status, Verdict, worst

FAILED = "failed_expectation"
"""The column of quarantined rows that names what they failed, several separated by `; `."""

# Judged at once: what Great Expectations holds grows with the rows. A million of twelve lines take 450 MB whole, so 220.
SLICE_ROWS = 100_000
EXAMPLES, EXAMPLE_LENGTH = 20, 200
CHANCE = 0.01
"""A batch fails only for what is rarer than this while the share of rows that `mostly` asks for holds."""


@dataclass(frozen=True)
class Met:
    """Rows of a batch that met this very contract before, as far as the judgement of the whole needs them.

    Attributes:
        rows: how many there are.
        missing: by column, how many of them have no value there: of each column that a line names.
        unique: the values of the columns that must be unique, which only all rows together can be.
    """

    rows: int
    missing: Mapping[str, int]
    unique: pl.DataFrame


@dataclass(frozen=True)
class Judgement:
    """What one line of the contract found in a batch.

    Attributes:
        expectation: the line.
        verdict: FAIL when more rows fail it than chance allows (`too_many`).
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

    @property
    def share(self) -> float:
        """Of the rows that have a value, how many met it; 1 where none has."""
        return (self.checked_rows - self.failed_rows) / self.checked_rows if self.checked_rows else 1.0


@dataclass(frozen=True)
class ValidationResult:
    """A batch, parted by its contract.

    Attributes:
        valid: rows that met every expectation, in order; those that had met it before are not among them.
        quarantined: rows that did not, in order, with one more column, `failed_expectation`.
        verdict: FAIL when more rows fail an expectation than chance allows, or a column is not there or of a type that
            cannot meet it; INCONCLUSIVE when there was nothing to check.
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
    met: Met | None = None,
) -> ValidationResult:
    """Judge a batch by its contract.

    Null and NaN are missing: `not_null` refuses them, every other expectation passes over them, and its `mostly` is a
    share of the rows that have a value. A row that fails is quarantined even where the batch passes; the batch fails when
    so many do that the share of good rows is lower than `mostly`, and not by chance (`too_many`).

    Args:
        frame: the batch, one row an event or a feature vector.
        expectations: the contract.
        name: whose batch it is, for the sentences and the suite.
        columns: the columns there must be, each with its kind: one that is not there or of another kind fails the batch,
            any other is told as new. None = only what the expectations name is looked at.
        met: more rows of the batch that met this contract when they were judged the first time. They count, and are not
            judged again, but for what must be unique: that would take six seconds for a million rows.
    """
    # The same line twice counts once.
    lines = tuple(dict.fromkeys(expectations))
    rows = frame.height + (met.rows if met else 0)
    if not rows:
        return _part(frame, {}, Verdict(Status.INCONCLUSIVE, f"{name}: no rows to validate", {"rows": 0}))
    unfit = misfits(frame.schema, lines, columns or {})
    new = sorted(set(frame.columns) - set(columns) - {e.column for e in lines}) if columns is not None else []
    asked = [e for e in lines if e.column not in unfit]
    found = dict(zip(asked, _judge(frame, met, asked, name), strict=True))
    every_row = range(frame.height)
    failed: dict[str, Sequence[int]] = {
        **{why: every_row for column, why in unfit.items() if column not in {e.column for e in lines}},
        **{describe(e): found[e].rows if e in found else every_row for e in lines},
    }
    judgements = tuple(
        _judgement(e, frame, met, found[e]) if e in found else _unfit(e, rows, unfit[e.column]) for e in lines
    )
    verdicts = [Verdict(Status.FAIL, why) for why in unfit.values()]
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
        below = [j.verdict.reason for j in judgements if j.share < j.expectation.mostly]
        reason = "; ".join([reason, *below])
    if new:
        reason += f"; new columns that the pipeline does not name: {', '.join(f'{c} ({frame.schema[c]})' for c in new)}"
    return ValidationResult(
        parted.valid,
        parted.quarantined,
        Verdict(overall.status, f"{name}: {reason}", measurements),
        judgements,
        tuple(unfit.values()),
    )


def too_many(failing: int, checked: int, mostly: float) -> bool:
    """Whether so many rows fail that the share of good ones is lower than `mostly`, and not by chance.

    That is: if just `mostly` of all rows were good, this many bad ones or more among so many would come with a probability
    below `CHANCE`, the upper tail of the binomial distribution. With `mostly` = 1 every bad row is too many.

    Args:
        failing: rows that fail, of those checked.
        checked: at least 1.
        mostly: the share that is due, in (0, 1].
    """
    from scipy.special import bdtrc

    if not failing or (checked - failing) / checked >= mostly:
        return False
    # The tail may be just the bound: of one row at 0.99. That is not below it, however it is rounded.
    return float(bdtrc(failing - 1, checked, 1 - mostly)) < CHANCE * (1 - 1e-9)


def _judge(frame: pl.DataFrame, met: Met | None, expectations: Sequence[Expectation], name: str) -> list[Found]:
    """What is found of each expectation: `unique` in all rows together, every other a slice at a time."""
    by_row = [e for e in expectations if e.kind != "unique"]
    found: dict[Expectation, Found] = {}
    for expectation in expectations:
        if expectation.kind == "unique":
            (found[expectation],) = run_suite(_values(expectation, frame, met).to_frame(), [expectation], name)
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
    return [found[e] for e in expectations]


def _values(expectation: Expectation, frame: pl.DataFrame, met: Met | None) -> pl.Series:
    """The values that were looked at: the batch's and, where they must be unique, those of the rows that met it before."""
    values = frame.get_column(expectation.column)
    if met is None or expectation.kind != "unique":
        return values
    both = [values.to_frame(), met.unique.select(expectation.column)]
    return pl.concat(both, how="vertical_relaxed").to_series()


def _judgement(expectation: Expectation, frame: pl.DataFrame, met: Met | None, found: Found) -> Judgement:
    missing, rows = found.missing_rows, frame.height
    if met:
        rows += met.rows
        missing += 0 if expectation.kind in ("not_null", "unique") else met.missing[expectation.column]
    checked, failing = rows - missing, len(found.rows)
    what, mostly = describe(expectation), expectation.mostly
    share = (checked - failing) / checked if checked else 1.0
    told = f"{what} fails in {failing} of {checked} rows ({share:.2%} met, {mostly:.2%} due)"
    if found.error:
        verdict = Verdict(Status.ERROR, f"{what} could not be checked: {found.error}")
    elif not checked:
        verdict = Verdict(Status.INCONCLUSIVE, f"{what}: all {rows} rows are missing")
    elif too_many(failing, checked, mostly):
        verdict = Verdict(Status.FAIL, told if mostly == 1 else f"{told}, more than chance allows")
    else:
        verdict = Verdict(Status.PASS, what if share >= mostly else f"{told}, which may be chance")
    examples = _examples(expectation, _values(expectation, frame, met), found.rows)
    return Judgement(expectation, verdict, missing, checked, failing, examples)


def _unfit(expectation: Expectation, rows: int, why: str) -> Judgement:
    return Judgement(expectation, Verdict(Status.FAIL, why), 0, rows, rows, ())


def _examples(expectation: Expectation, values: pl.Series, rows: Sequence[int]) -> tuple[tuple[str, int], ...]:
    if not rows or expectation.kind == "not_null":
        return ()
    counts = values.gather(list(rows)).alias("value").value_counts(sort=True).head(EXAMPLES)
    return tuple((str(value)[:EXAMPLE_LENGTH], count) for value, count in counts.iter_rows())


def _part(frame: pl.DataFrame, failed: Mapping[str, Sequence[int]], verdict: Verdict) -> ValidationResult:
    reasons: dict[int, list[str]] = {}
    for what, rows in failed.items():
        for row in rows:
            reasons.setdefault(row, []).append(what)
    told = pl.Series(FAILED, ["; ".join(reasons[i]) if i in reasons else None for i in range(frame.height)], pl.String)
    quarantined = frame.drop(FAILED, strict=False).with_columns(told).filter(told.is_not_null())
    return ValidationResult(frame.filter(told.is_null()), quarantined, verdict)
