"""How good the live model is, once the labels have come: discrimination with an interval, and calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.spec import PerformancePolicy
from validation.verdict import Status, Verdict

CONFIDENCE = 0.95
MIN_CLASS_ROWS = 10
"""Fewer rows of one class leave the variance of the AUC to chance, and with it the interval that decides."""
MAX_UNSCORED_SHARE = 0.05
"""More labelled rows than this without a finite score, and the others no longer speak for the model."""
NAN = float("nan")


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve, with a confidence interval of `CONFIDENCE`, all 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PerformanceVerdict:
    """How good the live model was on the predictions whose label has come; NaN is what cannot be told.

    Attributes:
        verdict: FAIL = worse than expected, PASS = not, INCONCLUSIVE = there is too little to tell.
        auc: area under the ROC curve; NaN with one class only.
        auc_low: lower end of its 95 % interval.
        auc_high: upper end.
        expected_auc: what the champion reached at its gate; None when it is not known.
        log_loss: mean negative log likelihood, nats.
        brier: mean squared error of the scores.
        labelled_rows: rows with a score and a label.
        unlabelled_rows: rows with a score whose label has not come.
        unscored_rows: rows without a finite score, left out.
        positive_rate: share of labelled rows that are true.
        first_event: earliest event of the labelled rows.
        last_event: latest event of the labelled rows.
    """

    verdict: Verdict
    auc: float
    auc_low: float
    auc_high: float
    expected_auc: float | None
    log_loss: float
    brier: float
    labelled_rows: int
    unlabelled_rows: int
    unscored_rows: int
    positive_rate: float
    first_event: datetime | None
    last_event: datetime | None


def measure_performance(
    predictions: pl.DataFrame, expected_auc: float | None, policy: PerformancePolicy
) -> PerformanceVerdict:
    """Judge the live model on predictions whose label has come.

    Args:
        predictions: one row a prediction: `score` (probability, 0 to 1), `label` (boolean, null = not here yet),
            `event_timestamp`.
        expected_auc: the champion's AUC at its gate; None when it is not known.
        policy: the drop that is too much, and the least labelled rows that can be judged.

    Returns:
        FAIL when even the upper end of the AUC's interval is more than `max_auc_drop` below what is expected;
        INCONCLUSIVE for too few labels, (nearly) one class only, more than `MAX_UNSCORED_SHARE` of the labelled rows
        without a finite score, nothing to expect, or an AUC below that line whose interval still reaches above it; ERROR
        for scores that are no probabilities, or a column that is missing or has another type; PASS otherwise.
    """
    unusable = _unusable(predictions.schema)
    if unusable:
        verdict = Verdict(Status.ERROR, unusable)
        predictions = pl.DataFrame(schema={"score": pl.Float64, "label": pl.Boolean, "event_timestamp": pl.Datetime})
        return replace(measure_performance(predictions, expected_auc, policy), verdict=verdict)
    scored = predictions.filter(pl.col("score").cast(pl.Float64).is_finite())
    labelled = scored.filter(pl.col("label").is_not_null())
    score = labelled.get_column("score").to_numpy().astype(np.float64)
    label = labelled.get_column("label").to_numpy().astype(bool)
    found = auc(score, label)
    is_probability = bool(((score >= 0) & (score <= 1)).all())
    expected = expected_auc if expected_auc is not None and math.isfinite(expected_auc) else None
    unscored = int(predictions.get_column("label").is_not_null().sum()) - labelled.height
    status, reason = _judge(score, label, unscored, found, expected, policy)
    measured = {
        "auc": found.value,
        "auc_low": found.low,
        "auc_high": found.high,
        "expected_auc": NAN if expected is None else expected,
        "log_loss": log_loss(score, label) if is_probability else NAN,
        "brier": float(np.mean((score - label) ** 2)) if is_probability and score.size else NAN,
        "labelled_rows": labelled.height,
        "unlabelled_rows": scored.height - labelled.height,
        "unscored_rows": predictions.height - scored.height,
        "positive_rate": float(label.mean()) if label.size else NAN,
    }
    return PerformanceVerdict(
        verdict=Verdict(status, reason, measured),
        auc=found.value,
        auc_low=found.low,
        auc_high=found.high,
        expected_auc=expected,
        log_loss=measured["log_loss"],
        brier=measured["brier"],
        labelled_rows=labelled.height,
        unlabelled_rows=scored.height - labelled.height,
        unscored_rows=predictions.height - scored.height,
        positive_rate=measured["positive_rate"],
        first_event=labelled.select(pl.col("event_timestamp").min()).item(),
        last_event=labelled.select(pl.col("event_timestamp").max()).item(),
    )


def auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> Auc:
    """The area under the ROC curve, ties counted half, with DeLong's interval.

    Source: DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988) for the variance; Sun and Xu (IEEE Signal Processing
    Letters 21, 2014) for computing it from ranks in O(n log n).

    Args:
        score: any finite numbers, shape (n,).
        label: the truth, shape (n,).

    Returns:
        The area and its interval, cut to 0 and 1; all NaN when a class is absent, the interval NaN with one row of one.
    """
    positive, negative = score[label], score[~label]
    m, n = positive.size, negative.size
    if not m or not n:
        return Auc(NAN, NAN, NAN)
    ranks = _midranks(score)
    # Share of the other class that each row is ranked beyond: the structural components of DeLong.
    beats = (ranks[label] - _midranks(positive)) / n
    beaten = 1.0 - (ranks[~label] - _midranks(negative)) / m
    area = float(beats.mean())
    if m < 2 or n < 2:
        return Auc(area, NAN, NAN)
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(beats.var(ddof=1) / m + beaten.var(ddof=1) / n)
    return Auc(area, max(area - half, 0.0), min(area + half, 1.0))


def log_loss(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Mean negative log likelihood of the labels, in nats; NaN without rows. Scores stay one epsilon from 0 and 1."""
    if not score.size:
        return NAN
    epsilon = float(np.finfo(np.float64).eps)
    kept = np.clip(score, epsilon, 1 - epsilon)
    return float(-np.mean(np.where(label, np.log(kept), np.log1p(-kept))))


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing the mean of theirs."""
    _, position, times = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return np.asarray((last - (times - 1) / 2)[position], dtype=np.float64)


def _judge(
    score: NDArray[np.float64],
    label: NDArray[np.bool_],
    unscored: int,
    found: Auc,
    expected: float | None,
    policy: PerformancePolicy,
) -> tuple[Status, str]:
    rows, positives = label.size, int(label.sum())
    outside = score[(score < 0) | (score > 1)]
    if outside.size:
        return Status.ERROR, (
            f"{outside.size} of {rows} scores are no probabilities, such as {outside[0]:g}; they must lie in 0 to 1"
        )
    if unscored > MAX_UNSCORED_SHARE * (rows + unscored):
        return Status.INCONCLUSIVE, (
            f"{unscored} of {rows + unscored} labelled rows have no finite score, more than {MAX_UNSCORED_SHARE:.0%}; "
            "the rest cannot speak for the model"
        )
    if rows < policy.min_rows:
        return Status.INCONCLUSIVE, f"{rows} labelled rows, fewer than the {policy.min_rows} that can be judged"
    fewer = min(positives, rows - positives)
    if fewer < MIN_CLASS_ROWS:
        return Status.INCONCLUSIVE, (
            f"{positives} of {rows} labels are true: AUC needs at least {MIN_CLASS_ROWS} rows of each class"
        )
    measured = f"AUC {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on {rows} labelled rows"
    if expected is None:
        return Status.INCONCLUSIVE, f"{measured}; there is no champion's AUC to hold it against"
    line = expected - policy.max_auc_drop
    against = f"the line {line:.3f} (expected {expected:.3f} - {policy.max_auc_drop:g})"
    if found.high < line:
        return Status.FAIL, f"{measured} is below {against}"
    if found.value < line:
        return (
            Status.INCONCLUSIVE,
            f"{measured} is below {against}, but its interval reaches above; more labels will tell",
        )
    return Status.PASS, f"{measured} is not below {against}"


def _unusable(schema: pl.Schema) -> str | None:
    """Why a frame of predictions cannot be judged, if it cannot."""
    lacking = [name for name in ("score", "label", "event_timestamp") if name not in schema]
    if lacking:
        return f"the predictions lack the columns {lacking}; they have {list(schema)}"
    if not (schema["score"].is_numeric() or schema["score"] == pl.Null):
        return f"column 'score' is {schema['score']}, expected Float64"
    if schema["label"] not in (pl.Boolean, pl.Null):
        return f"column 'label' is {schema['label']}, expected Boolean with null for a label that has not come"
    return None
