"""How good the live model probably is while labels have not come: an estimate, and how it did once they came.

Calibrated scores say how probable each label is; metrics are then expected values over the labels (confidence-based
performance estimation). It holds as long as a score still means what it meant at the champion's gate: the estimate sees
that the data has moved, and is blind to a change of what the data means (concept drift). And as long as waiting itself says
nothing: where bad news comes later than good, as a late flight lands late, rows that wait are worse than their scores. So it
warns and does not judge, and a miss, seen when the labels come, is itself a sign of concept drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from pipelines.spec import PerformancePolicy
from validation.calibration import Calibration
from validation.metrics import (
    CONFIDENCE,
    METRICS,
    MIN_CLASS_ROWS,
    MIN_DAYS,
    NAN,
    Days,
    Floats,
    Interval,
    are_probabilities,
    days_of,
    interval,
    logarithms,
    measure,
    midranks,
)
from validation.performance import MAX_UNSCORED_SHARE, PerformanceVerdict, against_line, unusable
from validation.verdict import Status, Verdict

MAX_BEYOND_SHARE = 0.05
"""More scores than this beyond those the calibration has seen, and it says too little of them."""
NOTHING: Mapping[str, Interval] = dict.fromkeys(METRICS, Interval(NAN))


@dataclass(frozen=True)
class PerformanceEstimate:
    """How good the live model probably is on predictions that have no label: estimated, not measured.

    Attributes:
        verdict: FAIL = even the upper end of the estimated AUC is below the line, PASS = not, INCONCLUSIVE = there is too
            little to estimate from, or nothing to hold it against, ERROR = the frame cannot be read.
        intervals: by metric of `METRICS`, the estimate and where the measured value is to be expected in 95 of 100 cases.
        expected_auc: what the champion reached at its gate; None when it is not known.
        rows: predictions that were looked at.
    """

    verdict: Verdict
    intervals: Mapping[str, Interval]
    expected_auc: float | None
    rows: int


@dataclass(frozen=True)
class CheckedMetric:
    """One metric of labelled rows beside what would have been estimated without their labels.

    Attributes:
        metric: its name, one of `METRICS`.
        estimated: the estimate and its interval, of such a confidence that all metrics' hold in 95 of 100 cases.
        measured: the truth.
        difference: measured less estimated.
        covered: whether the truth lies in the interval.
    """

    metric: str
    estimated: Interval
    measured: float
    difference: float
    covered: bool


@dataclass(frozen=True)
class EstimateCheck:
    """What the estimate would have said of rows whose labels have come, beside the truth.

    Attributes:
        verdict: FAIL = a metric lies outside its interval, PASS = none does, INCONCLUSIVE = there was too little to tell.
        metrics: one of each of `METRICS`; empty when there was too little to tell.
        rows: labelled rows.
    """

    verdict: Verdict
    metrics: tuple[CheckedMetric, ...]
    rows: int


@dataclass(frozen=True)
class _Usable:
    """Rows with a finite score, and what is needed to estimate from them."""

    rows: pl.DataFrame
    score: Floats
    days: Days
    calibration: Calibration


def estimate_performance(
    predictions: pl.DataFrame,
    calibration: Calibration | None,
    expected_auc: float | None,
    policy: PerformancePolicy,
) -> PerformanceEstimate:
    """Estimate the metrics of predictions whose labels have not come.

    Args:
        predictions: one row a prediction: `score` (probability, 0 to 1) and `event_timestamp`.
        calibration: of the model that gave the scores; None when it has none.
        expected_auc: the champion's AUC at its gate; None when it is not known.
        policy: the drop that is too much, and the least rows that can be judged.
    """
    expected = expected_auc if expected_auc is not None and math.isfinite(expected_auc) else None
    found = _prepare(predictions, calibration, policy, "predictions without a label")
    if isinstance(found, Verdict):
        return PerformanceEstimate(found, NOTHING, expected, predictions.height)
    score = found.score
    estimated = expected_metrics(score, found.days, found.calibration)
    area = estimated["auc"]
    measurements = {"rows": float(score.size)} | {
        f"estimated_{name}{end}": getattr(one, of)
        for name, one in estimated.items()
        for end, of in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    told = (
        f"estimated AUC {area.value:.3f} ({area.low:.3f} to {area.high:.3f}) of {score.size} predictions without a label, "
        "if scores mean what they meant at the champion's gate,"
    )
    status, reason = against_line(told, area, expected, policy)
    return PerformanceEstimate(Verdict(status, reason, measurements), estimated, expected, score.size)


def check_estimate(
    predictions: pl.DataFrame, calibration: Calibration | None, policy: PerformancePolicy
) -> EstimateCheck:
    """Hold the estimate against the truth on the rows that have a label.

    Args:
        predictions: one row a prediction: `score`, `event_timestamp` and `label` (boolean, null = not here yet).
        calibration: of the model that gave the scores; None when it has none.
        policy: the least rows that can be judged.

    Returns:
        Each metric estimated as if the labels were not known, and measured. The four intervals hold the truth together
        in 95 of 100 cases (Bonferroni), so one of them that misses says something.
    """
    why = unusable(predictions.schema)
    if why:
        return EstimateCheck(Verdict(Status.ERROR, why), (), 0)
    labelled = predictions.filter(pl.col("label").is_not_null())
    found = _prepare(labelled, calibration, policy, "labelled predictions")
    if isinstance(found, Verdict):
        return EstimateCheck(found, (), labelled.height)
    label = found.rows.get_column("label").to_numpy().astype(bool)
    fewer = min(int(label.sum()), int((~label).sum()))
    if fewer < MIN_CLASS_ROWS:
        reason = (
            f"{int(label.sum())} of {label.size} labels are true: at least {MIN_CLASS_ROWS} of each class are needed"
        )
        return EstimateCheck(Verdict(Status.INCONCLUSIVE, reason), (), label.size)
    truth = measure(found.score, label, found.days)
    joint = 1 - (1 - CONFIDENCE) / len(METRICS)
    checked = tuple(
        CheckedMetric(
            name, one, truth[name].value, truth[name].value - one.value, one.low <= truth[name].value <= one.high
        )
        for name, one in expected_metrics(found.score, found.days, found.calibration, joint).items()
    )
    measurements = {"rows": float(label.size)} | {f"missed_by_{c.metric}": c.difference for c in checked}
    missed = [c for c in checked if not c.covered]
    told = ", ".join(
        f"{METRICS[c.metric]} {c.measured:.3f} instead of an estimated {c.estimated.value:.3f} "
        f"({c.estimated.low:.3f} to {c.estimated.high:.3f})"
        for c in missed or checked[:1]
    )
    if missed:
        reason = (
            f"on {label.size} labelled rows the estimate misses the truth: {told}; scores no longer mean what they meant "
            "at the champion's gate, a sign of concept drift"
        )
        return EstimateCheck(Verdict(Status.FAIL, reason, measurements), checked, label.size)
    told = told.replace("instead of an estimated", "where the estimate was")
    reason = f"on {label.size} labelled rows the estimate holds the truth: {told}"
    return EstimateCheck(Verdict(Status.PASS, reason, measurements), checked, label.size)


def with_estimate(
    measured: PerformanceVerdict, estimate: PerformanceEstimate, check: EstimateCheck
) -> PerformanceVerdict:
    """The measured verdict, with a warning where the estimate or its check FAILs: labels decide, estimates warn."""
    failed = [v for v in (estimate.verdict, check.verdict) if v.status is Status.FAIL]
    if not failed:
        return measured
    reason = "; warning: ".join([measured.verdict.reason, *(v.reason for v in failed)])
    return replace(measured, verdict=replace(measured.verdict, reason=reason))


def expected_metrics(
    score: Floats, days: Days, calibration: Calibration, confidence: float = CONFIDENCE
) -> Mapping[str, Interval]:
    """The metrics to be expected of scores whose labels are not known.

    With p the calibrated probability that a row is positive, a loss is expected to be p times that of a positive and
    1 - p times that of a negative row; the AUC is the expected number of pairs in the right order (ties half) over the
    expected number of pairs, both over two different rows. The interval has two parts. The labels will fall by chance:
    each row moves a metric by its influence (for the AUC the first-order one, from its rank), rows of one day together
    (`Calibration.day_correlation`). And the curve was itself learned from few days (`Calibration.covariance`, by the delta
    method).

    Source: Guillory et al. (ICCV 2021) and Garg et al. (ICLR 2022) for predicting accuracy from confidence; NannyML's
    documentation, "Confidence-based performance estimation", for metrics from calibrated probabilities, whose bands are
    the scatter of metrics between chunks of the reference, and not these intervals.

    Args:
        score: probabilities that the model gave, 0 to 1, shape (n,), n at least 1.
        days: the day of each row as a number, shape (n,).
        calibration: what the scores are worth.
        confidence: of the intervals.

    Returns:
        Each metric of `METRICS` with the interval in which the measured value is to be expected.
    """
    p, rows = calibration.probability(score), score.size
    positive, negative = logarithms(score)
    variance = p * (1 - p)
    area, pulls = _expected_auc(score, p, variance)
    found = {
        "auc": (area, pulls, 1.0),
        "log_loss": (float((p * positive + (1 - p) * negative).mean()), (positive - negative) / rows, math.inf),
        "brier": (float((p * (1 - score) ** 2 + (1 - p) * score**2).mean()), (1 - 2 * score) / rows, 1.0),
        "positive_rate": (float(p.mean()), np.full(rows, 1 / rows), 1.0),
    }
    covariance, together = np.asarray(calibration.covariance), calibration.day_correlation
    freedom = calibration.days - 1 if calibration.days >= MIN_DAYS else math.inf
    _, day = np.unique(days, return_inverse=True)
    estimated = {}
    for name, (value, influence, highest) in found.items():
        moved = influence * np.sqrt(variance)
        by_chance = (1 - together) * float((moved**2).sum()) + together * float((np.bincount(day, moved) ** 2).sum())
        by_knot = calibration.pull(score, influence)
        error = math.sqrt(by_chance + max(float(by_knot @ covariance @ by_knot), 0.0))
        estimated[name] = interval(value, error, freedom, highest, confidence)
    return estimated


def _expected_auc(score: Floats, p: Floats, variance: Floats) -> tuple[float, Floats]:
    """The expected AUC and how much each row's label would move it; NaN where no pair is to be expected."""
    positives, negatives = float(p.sum()), float((1 - p).sum())
    pairs = positives * negatives - float(variance.sum())
    if not pairs > 1e-9:
        return NAN, np.full(score.size, NAN)
    _, place = np.unique(score, return_inverse=True)
    tied = np.bincount(place, 1 - p)
    below = (np.cumsum(tied) - tied)[place]
    # A row is no pair with itself.
    right = float((p * (below + (tied[place] - (1 - p)) / 2)).sum())
    area = right / pairs
    influence = (midranks(score) - 0.5 - positives - area * (negatives - positives)) / (positives * negatives)
    return area, influence


def _prepare(
    predictions: pl.DataFrame, calibration: Calibration | None, policy: PerformancePolicy, what: str
) -> _Usable | Verdict:
    """Finite scores with their days, or why nothing can be estimated from them."""
    why = unusable(predictions.schema, ("score", "event_timestamp"))
    if why:
        return Verdict(Status.ERROR, why)
    finite = predictions.filter(pl.col("score").cast(pl.Float64).is_finite())
    score = finite.get_column("score").to_numpy().astype(np.float64)
    lost = predictions.height - score.size
    if calibration is None:
        reason = "the champion has no calibration of its scores, so nothing is estimated; its next retrain brings one"
    elif lost > MAX_UNSCORED_SHARE * predictions.height:
        reason = f"{lost} of {predictions.height} {what} have no finite score, more than {MAX_UNSCORED_SHARE:.0%}"
    elif score.size < policy.min_rows:
        reason = f"{score.size} {what}, fewer than the {policy.min_rows} from which can be estimated"
    elif not are_probabilities(score):
        outside = score[(score < 0) | (score > 1)]
        reason = f"{outside.size} of {score.size} scores are no probabilities, such as {outside[0]:g}"
    else:
        beyond = int(((score < calibration.lowest) | (score > calibration.highest)).sum())
        if beyond <= MAX_BEYOND_SHARE * score.size:
            return _Usable(finite, score, days_of(finite.get_column("event_timestamp")), calibration)
        reason = (
            f"{beyond} of {score.size} scores lie beyond those of the champion's gate ({calibration.lowest:.3f} to "
            f"{calibration.highest:.3f}), more than {MAX_BEYOND_SHARE:.0%}; of them its calibration says nothing"
        )
    return Verdict(Status.INCONCLUSIVE, reason)
