"""Is the candidate good enough to serve: the same rows, both models, a table of tolerances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.spec import GatePolicy, Tolerance
from validation.verdict import Status, Verdict, worst


@dataclass(frozen=True)
class GateRow:
    """One metric of the comparison.

    Attributes:
        metric: its name.
        champion: the champion's value; NaN where there is none.
        candidate: the candidate's value; NaN where there is none.
        tolerance: how much worse the candidate may be, in the metric's unit; NaN where it cannot be told.
        regression: how much worse it is; negative = better; NaN where it cannot be told.
        verdict: what follows from this metric alone.
    """

    metric: str
    champion: float
    candidate: float
    tolerance: float
    regression: float
    verdict: Verdict


@dataclass(frozen=True)
class GateResult:
    """What the gate found: a row a metric, and the worst of their verdicts."""

    rows: tuple[GateRow, ...]
    verdict: Verdict


def evaluate(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> Mapping[str, float]:
    """Measure a model's scores against the truth.

    `auc` is the Mann-Whitney statistic, ties counting half (Hanley and McNeil 1982); `log_loss` is in nats with scores
    kept 1e-15 from 0 and 1; `brier` is the mean squared error (Brier 1950).

    Args:
        scores: (n,) probabilities of the positive class.
        labels: (n,) booleans.

    Returns:
        auc, log_loss, brier, rows, positive_rate. Everything but rows is NaN without rows; auc is NaN when the labels
        are of one kind only; a NaN score makes auc, log_loss and brier NaN.
    """
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} scores came with {len(labels)} labels")
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    rows = len(truth)
    if not rows:
        return {"auc": math.nan, "log_loss": math.nan, "brier": math.nan, "rows": 0.0, "positive_rate": math.nan}
    clipped = np.clip(scores, 1e-15, 1 - 1e-15)
    return {
        "auc": _auc(scores, truth),
        "log_loss": float(-np.mean(np.where(truth, np.log(clipped), np.log1p(-clipped)))),
        "brier": float(np.mean((scores - truth) ** 2)),
        "rows": float(rows),
        "positive_rate": float(truth.mean()),
    }


def compare(champion: Mapping[str, float] | None, candidate: Mapping[str, float], policy: GatePolicy) -> GateResult:
    """Compare a candidate with the champion, both measured by `evaluate` on the same rows.

    A metric passes when the candidate is worse by no more than the larger of the absolute tolerance and the relative
    one times the champion's value. A metric that is missing or NaN on either side is INCONCLUSIVE, and so is everything
    when the rows are too few or not the same. The first champion has nobody to beat: its AUC must reach a floor.

    Args:
        champion: the champion's metrics; None when there is no champion.
        candidate: the candidate's metrics.
        policy: tolerances, least number of rows, and the floor.

    Returns:
        A row a metric; the verdict is the worst of all rows and of the check of the rows.
    """
    rows: tuple[GateRow, ...]
    if champion is None:
        rows = (_against_floor(candidate, policy.min_auc),)
    else:
        rows = tuple(_against_champion(champion, candidate, tolerance) for tolerance in policy.tolerances)
    compared = worst(row.verdict for row in rows)
    enough = _enough_rows(champion, candidate, policy)
    verdict = compared if enough.passed else worst([compared, enough])
    measurements = {f"{row.metric}_regression": row.regression for row in rows}
    return GateResult(rows, Verdict(verdict.status, verdict.reason, {**measurements, **enough.measurements}))


def render_markdown(result: GateResult) -> str:
    """The result as a Markdown table, the verdict above it."""
    lines = [
        f"**{result.verdict.status.name}**: {result.verdict.reason}",
        "",
        "| metric | champion | candidate | worse by | tolerance | verdict |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row.metric} | {_number(row.champion)} | {_number(row.candidate)} | {_number(row.regression, '+.4f')} "
        f"| {_number(row.tolerance)} | {row.verdict.status.name} |"
        for row in result.rows
    ]
    return "\n".join(lines) + "\n"


def _auc(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not positive or not negative or np.isnan(scores).any():
        return math.nan
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank_of_group = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(rank_of_group[group][truth].sum())
    return (rank_sum - positive * (positive + 1) / 2) / (positive * negative)


def _enough_rows(champion: Mapping[str, float] | None, candidate: Mapping[str, float], policy: GatePolicy) -> Verdict:
    rows = candidate.get("rows", math.nan)
    measurements = {"rows": rows}
    if not rows >= policy.min_rows:
        return Verdict(Status.INCONCLUSIVE, f"{rows:g} holdout rows are fewer than {policy.min_rows}", measurements)
    if champion is not None and champion.get("rows") != rows:
        reason = f"measured on different rows: champion on {champion.get('rows', math.nan):g}, candidate on {rows:g}"
        return Verdict(Status.INCONCLUSIVE, reason, measurements)
    return Verdict(Status.PASS, f"{rows:g} holdout rows", measurements)


def _against_floor(candidate: Mapping[str, float], floor: float) -> GateRow:
    value = candidate.get("auc", math.nan)
    regression = floor - value
    if math.isnan(value):
        verdict = Verdict(Status.INCONCLUSIVE, "the first candidate's auc could not be measured")
    elif regression > 0:
        verdict = Verdict(Status.FAIL, f"first champion: auc {value:.4f} < floor {floor:.4f}")
    else:
        verdict = Verdict(Status.PASS, f"first champion: auc {value:.4f} >= floor {floor:.4f}")
    return GateRow("auc", math.nan, value, 0.0, regression, verdict)


def _against_champion(champion: Mapping[str, float], candidate: Mapping[str, float], tolerance: Tolerance) -> GateRow:
    metric = tolerance.metric
    old, new = champion.get(metric, math.nan), candidate.get(metric, math.nan)
    regression = old - new if tolerance.direction == "higher" else new - old
    allowed = max(tolerance.absolute, tolerance.relative * abs(old))
    if not math.isfinite(regression):
        absent = [name for name, value in (("champion", old), ("candidate", new)) if not math.isfinite(value)]
        verdict = Verdict(Status.INCONCLUSIVE, f"{metric} could not be measured for the {' and the '.join(absent)}")
        return GateRow(metric, old, new, math.nan, math.nan, verdict)
    change = f"{metric} {old:.4f} -> {new:.4f}"
    if regression > allowed:
        verdict = Verdict(Status.FAIL, f"{change}: worse by {regression:.4f} > tolerance {allowed:.4f}")
    else:
        side = "worse" if regression > 0 else "better"
        verdict = Verdict(Status.PASS, f"{change}: {side} by {abs(regression):.4f}, tolerance {allowed:.4f}")
    return GateRow(metric, old, new, allowed, regression, verdict)


def _number(value: float, form: str = ".4f") -> str:
    return format(value, form) if math.isfinite(value) else "-"
