"""How good the live model is, once the labels have come: on the whole, and on each part of the traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import polars as pl

from pipelines.spec import PerformancePolicy
from validation.metrics import (
    METRICS,
    MIN_CLASS_ROWS,
    MIN_DAYS,
    NAN,
    Bools,
    DayScatter,
    Floats,
    Interval,
    are_probabilities,
    auc,
    days_of,
    measure,
    rate,
)
from validation.metrics import log_loss as log_loss
from validation.slices import SliceReference, SliceVerdict, measure_slices
from validation.verdict import Status, Verdict

MAX_UNSCORED_SHARE = 0.05
"""More labelled rows than this without a finite score, and the others no longer speak for the model."""


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
        intervals: each of `METRICS` with its 95 % interval and standard error.
        days: UTC days of the labelled rows; from `MIN_DAYS` on, intervals come from the scatter between them, and with fewer
            that of the AUC from the scatter between days at the gate.
        slices: how good it was on each part of the traffic that the policy names; a bad one does not make the whole FAIL.
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
    intervals: Mapping[str, Interval]
    days: int
    slices: tuple[SliceVerdict, ...]
    first_event: datetime | None
    last_event: datetime | None


def measure_performance(
    predictions: pl.DataFrame,
    expected_auc: float | None,
    policy: PerformancePolicy,
    references: Sequence[SliceReference] = (),
    scatter: DayScatter | None = None,
) -> PerformanceVerdict:
    """Judge the live model on predictions whose label has come.

    Args:
        predictions: one row a prediction: `score` (probability, 0 to 1), `label` (boolean, null = not here yet),
            `event_timestamp`, and the columns that divide it into slices.
        expected_auc: the champion's AUC at its gate; None when it is not known.
        policy: the drop that is too much, and the least labelled rows that can be judged.
        references: how the rows are divided into slices, and the champion's AUC of each at its gate.
        scatter: how much days differed at the gate; None when it is not known, and then fewer than `MIN_DAYS` days prove
            nothing.

    Returns:
        FAIL when even the upper end of the AUC's interval is more than `max_auc_drop` below what is expected;
        INCONCLUSIVE for too few labels or days, (nearly) one class only, more than `MAX_UNSCORED_SHARE` of the labelled rows
        without a finite score, nothing to expect, or an AUC below that line whose interval still reaches above it; ERROR
        for scores that are no probabilities, or a column that is missing or has another type; PASS otherwise. Slices that
        FAIL are named in the reason, whatever the status.
    """
    why = unusable(predictions.schema)
    if why:
        nothing = pl.DataFrame(schema={"score": pl.Float64, "label": pl.Boolean, "event_timestamp": pl.Datetime})
        return replace(measure_performance(nothing, expected_auc, policy), verdict=Verdict(Status.ERROR, why))
    scored = predictions.filter(pl.col("score").cast(pl.Float64).is_finite())
    labelled = scored.filter(pl.col("label").is_not_null())
    score = labelled.get_column("score").to_numpy().astype(np.float64)
    label = labelled.get_column("label").to_numpy().astype(bool)
    days = days_of(labelled.get_column("event_timestamp"))
    if are_probabilities(score):
        found = measure(score, label, days)
        slices = measure_slices(labelled, score, label, days, references, policy)
    else:
        nothing_told = {"log_loss": Interval(NAN), "brier": Interval(NAN)}
        found, slices = {"auc": auc(score, label, days), **nothing_told, "positive_rate": rate(label, days)}, ()
    number = np.unique(days).size
    if 0 < number < MIN_DAYS and scatter is not None and math.isfinite(found["auc"].error):
        found = {**found, "auc": scatter.widen(found["auc"], number)}
    expected = expected_auc if expected_auc is not None and math.isfinite(expected_auc) else None
    unscored = int(predictions.get_column("label").is_not_null().sum()) - labelled.height
    status, reason = _judge(score, label, number, unscored, found["auc"], scatter is not None, expected, policy)
    degraded = [s for s in slices if s.status is Status.FAIL]
    if degraded:
        reason += "; worse than expected on " + ", ".join(f"{s.feature} {s.name} ({s.reason})" for s in degraded)
    counts = {
        "labelled_rows": labelled.height,
        "unlabelled_rows": scored.height - labelled.height,
        "unscored_rows": predictions.height - scored.height,
        "days": number,
    }
    ends = {f"{name}_{end}": getattr(found[name], end) for name in METRICS for end in ("low", "high")}
    values = {name: found[name].value for name in METRICS}
    measurements = {
        **values,
        **ends,
        **counts,
        "expected_auc": NAN if expected is None else expected,
        "slices": len(slices),
        "slices_degraded": len(degraded),
        **{f"auc {s.feature} {s.name}": s.auc.value for s in degraded},
    }
    return PerformanceVerdict(
        verdict=Verdict(status, reason, measurements),
        auc=values["auc"],
        auc_low=found["auc"].low,
        auc_high=found["auc"].high,
        expected_auc=expected,
        log_loss=values["log_loss"],
        brier=values["brier"],
        positive_rate=values["positive_rate"],
        intervals=found,
        slices=slices,
        first_event=labelled.select(pl.col("event_timestamp").min()).item(),
        last_event=labelled.select(pl.col("event_timestamp").max()).item(),
        **counts,
    )


def _judge(
    score: Floats,
    label: Bools,
    days: int,
    unscored: int,
    found: Interval,
    scattered: bool,
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
    measured = f"AUC {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on {rows} labelled rows of {days} days"
    if days >= MIN_DAYS:
        return against_line(measured, found, expected, policy)
    measured = measured.removesuffix("s") if days == 1 else measured
    if scattered:
        return against_line(f"{measured}, taken to differ as those of its gate did,", found, expected, policy)
    status, reason = against_line(measured, found, expected, policy)
    if status is Status.FAIL:
        # Rows of a day err together, and nothing says how much: such an alarm would be about the weather.
        return Status.INCONCLUSIVE, f"{reason}, and fewer than {MIN_DAYS} days prove nothing; more labels will tell"
    return status, reason


def against_line(told: str, found: Interval, expected: float | None, policy: PerformancePolicy) -> tuple[Status, str]:
    """Hold an AUC, measured or estimated, against what is expected less the drop that is allowed.

    Args:
        told: what the sentence begins with.
        found: the AUC.
        expected: the champion's AUC at its gate; None when it is not known.
        policy: the drop that is too much.
    """
    if expected is None:
        return Status.INCONCLUSIVE, f"{told}; there is no champion's AUC to hold it against"
    line = expected - policy.max_auc_drop
    against = f"the line {line:.3f} (expected {expected:.3f} - {policy.max_auc_drop:g})"
    if found.high < line:
        return Status.FAIL, f"{told} is below {against}"
    if found.value < line:
        return Status.INCONCLUSIVE, f"{told} is below {against}, but its interval reaches above; more labels will tell"
    if found.value >= line:
        return Status.PASS, f"{told} is not below {against}"
    return Status.INCONCLUSIVE, f"{told} cannot be held against {against}"


def unusable(schema: pl.Schema, columns: Sequence[str] = ("score", "label", "event_timestamp")) -> str | None:
    """Why a frame of predictions cannot be judged, if it cannot."""
    lacking = [name for name in columns if name not in schema]
    if lacking:
        return f"the predictions lack the columns {lacking}; they have {list(schema)}"
    if not (schema["score"].is_numeric() or schema["score"] == pl.Null):
        return f"column 'score' is {schema['score']}, expected Float64"
    if "label" in columns and schema["label"] not in (pl.Boolean, pl.Null):
        return f"column 'label' is {schema['label']}, expected Boolean with null for a label that has not come"
    if not isinstance(schema["event_timestamp"], pl.Datetime):
        return f"column 'event_timestamp' is {schema['event_timestamp']}, expected Datetime"
    return None
