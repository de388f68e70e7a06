"""Parts of the traffic, one feature at a time: a model can fail for one airport and look fine on the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.spec import Feature, PerformancePolicy
from validation.bins import Kind, readable
from validation.metrics import (
    CONFIDENCE,
    MIN_CLASS_ROWS,
    MIN_DAYS,
    NAN,
    Bools,
    Days,
    Floats,
    Interval,
    auc,
    clustered,
    quantile,
    rate,
)
from validation.verdict import Status

TOP_CATEGORIES = 20
MIN_ROWS = 100
"""Fewer rows, in the window or at the gate, are not judged; each slice that is judged costs the others certainty."""


@dataclass(frozen=True)
class SliceReference:
    """How one feature divides the rows, frozen with the champion, and how good it was on each part.

    Attributes:
        feature: name of the column.
        kind: numeric or categorical.
        cuts: ascending quartiles of a numeric feature; a value equal to a cut belongs below it.
        categories: categories with a slice of their own, most frequent first.
        expected: the champion's AUC of each slice at its gate, in the order of `names`.
    """

    feature: str
    kind: Kind
    cuts: tuple[float, ...]
    categories: tuple[str, ...]
    expected: tuple[Interval, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The slices; the last is for all rows of a frame that has no such column, or one of an unreadable type."""
        if self.kind == "categorical":
            return (*self.categories, "(other)", "(missing)", "(no column)")
        told = [f"{cut:.4g}" for cut in self.cuts]
        between = [f"{low} to {high}" for low, high in itertools.pairwise(told)]
        ends = (f"up to {told[0]}", f"above {told[-1]}") if told else ("any value",)
        return (ends[0], *between, *ends[1:], "(missing)", "(no column)")

    def assign(self, frame: pl.DataFrame) -> NDArray[np.int64]:
        """The slice of each row, as a position in `names`; a NaN is missing, an infinity is a value."""
        missing, absent = len(self.names) - 2, len(self.names) - 1
        values = readable(frame.get_column(self.feature), self.kind) if self.feature in frame.columns else None
        if values is None:
            return np.full(frame.height, absent, dtype=np.int64)
        if self.kind == "categorical":
            known = {category: i for i, category in enumerate(self.categories)}
            distinct = values.unique()
            codes = [missing if v is None else known.get(v, missing - 1) for v in distinct.to_list()]
            found = values.replace_strict(distinct, pl.Series(codes, dtype=pl.Int64), return_dtype=pl.Int64)
            return found.to_numpy().astype(np.int64)
        places = np.searchsorted(np.asarray(self.cuts), values.fill_null(0.0).to_numpy(), side="left")
        return np.where(values.is_null().to_numpy(), missing, places).astype(np.int64)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is NaN or infinite becomes None."""
        expected = [
            {name: value if math.isfinite(value) else None for name, value in vars(interval).items()}
            for interval in self.expected
        ]
        return {**vars(self), "cuts": list(self.cuts), "categories": list(self.categories), "expected": expected}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> SliceReference:
        """What `as_dict` described."""
        unknown = {"freedom": math.inf}
        expected = (
            Interval(**{k: unknown.get(k, NAN) if v is None else v for k, v in one.items()})
            for one in described["expected"]
        )
        cuts, categories = tuple(described["cuts"]), tuple(described["categories"])
        return cls(described["feature"], described["kind"], cuts, categories, tuple(expected))


@dataclass(frozen=True)
class SliceVerdict:
    """How good the live model was on one slice; NaN is what cannot be told.

    Attributes:
        feature: the column that divides the rows.
        name: which part of it.
        status: FAIL = worse than expected, PASS = not, INCONCLUSIVE = there is too little to tell.
        reason: why, with the numbers.
        rows: labelled rows.
        positive_rate: share of them that is true, with Wilson's interval.
        auc: area under the ROC curve with its own 95 % interval.
        expected_auc: the champion's at its gate.
        highest_auc: what the AUC may be at most, given how many slices are looked at and how sure the expectation is.
    """

    feature: str
    name: str
    status: Status
    reason: str
    rows: int
    positive_rate: Interval
    auc: Interval
    expected_auc: float
    highest_auc: float


def freeze_slices(
    frame: pl.DataFrame, score: Floats, label: Bools, days: Days, features: Sequence[Feature]
) -> tuple[SliceReference, ...]:
    """Divide the rows on which a model is held to its gate, and measure it on each part.

    Args:
        frame: the rows, with a column of each feature.
        score: the model's scores of them, shape (n,).
        label: the truth, shape (n,).
        days: the day of each row as a number, shape (n,).
        features: which features divide them: a categorical one by its most frequent categories, a numeric one by its
            quartiles.
    """
    found = []
    for feature in features:
        cut = _cut(frame, feature)
        place = cut.assign(frame)
        expected = tuple(
            auc(score[at], label[at], days[at]) if _enough(label[at], days[at]) is None else Interval(NAN)
            for at in (place == i for i in range(len(cut.names)))
        )
        found.append(SliceReference(cut.feature, cut.kind, cut.cuts, cut.categories, expected))
    return tuple(found)


def measure_slices(
    frame: pl.DataFrame,
    score: Floats,
    label: Bools,
    days: Days,
    references: Sequence[SliceReference],
    policy: PerformancePolicy,
) -> tuple[SliceVerdict, ...]:
    """Judge the live model on each slice.

    A slice FAILs when the interval of the difference to what is expected lies beyond the drop that is allowed. It has the
    confidence 1 - 0.05 / k for the k slices that can be judged (Bonferroni), so that of all slices of a healthy model one
    FAILs by chance in at most 2.5 of 100 windows; and it knows the error of the expectation itself, which a small slice
    at the gate leaves uncertain (degrees of freedom after Welch and Satterthwaite).

    Args:
        frame: labelled rows with the columns of the features.
        score: their scores, shape (n,).
        label: their truth, shape (n,).
        days: the day of each row as a number, shape (n,).
        references: how the champion's gate divided the rows.
        policy: the drop that is too much.

    Returns:
        A verdict a slice that has rows, or had them at the gate; the rows of one feature's slices add up to all rows.
    """
    found = []
    for reference in references:
        place = reference.assign(frame)
        for i, name in enumerate(reference.names):
            at, expected = place == i, reference.expected[i]
            if at.any() or math.isfinite(expected.value):
                found.append((reference.feature, name, score[at], label[at], days[at], expected))
    judged = sum(_enough(label, days) is None and math.isfinite(expected.error) for *_, label, days, expected in found)
    confidence = 1 - (1 - CONFIDENCE) / max(judged, 1)
    return tuple(_judge(*one, confidence, policy) for one in found)


def _cut(frame: pl.DataFrame, feature: Feature) -> SliceReference:
    values = readable(frame.get_column(feature.name), feature.kind)
    present = pl.Series([], dtype=pl.Float64) if values is None else values.drop_nulls()
    if feature.kind == "categorical":
        counted = present.cast(pl.String).alias("value").value_counts(name="n")
        top = counted.sort(["n", "value"], descending=[True, False]).head(TOP_CATEGORIES)
        return SliceReference(feature.name, feature.kind, (), tuple(top.get_column("value").to_list()))
    numbers = present.to_numpy().astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return SliceReference(feature.name, feature.kind, (), ())
    cuts = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75), method="inverted_cdf"))
    # A cut at the greatest value would leave nothing above it.
    return SliceReference(feature.name, feature.kind, tuple(float(c) for c in cuts if c < numbers.max()), ())


def _enough(label: Bools, days: Days) -> str | None:
    """Why these rows are too few to judge, if they are."""
    positives = int(label.sum())
    if label.size < MIN_ROWS:
        return f"{label.size} labelled rows, fewer than the {MIN_ROWS} that can be judged"
    if min(positives, label.size - positives) < MIN_CLASS_ROWS:
        return f"{positives} of {label.size} labels are true: AUC needs at least {MIN_CLASS_ROWS} rows of each class"
    if not clustered(days):
        return f"labelled rows of {np.unique(days).size} days, fewer than the {MIN_DAYS} that tell how much days differ"
    return None


def _judge(
    feature: str,
    name: str,
    score: Floats,
    label: Bools,
    days: Days,
    expected: Interval,
    confidence: float,
    policy: PerformancePolicy,
) -> SliceVerdict:
    found, share = auc(score, label, days), rate(label, days)
    few = _enough(label, days)
    highest = NAN
    if few is None and math.isfinite(expected.error):
        error, freedom = _of_difference(found, expected)
        highest = min(found.value + quantile(freedom, confidence) * error, 1.0)
    line = expected.value - policy.max_auc_drop
    measured = f"AUC {found.value:.3f} on {label.size} labelled rows"
    if few is not None:
        status, reason = Status.INCONCLUSIVE, few
    elif not math.isfinite(expected.error):
        status, reason = Status.INCONCLUSIVE, f"{measured}; at the champion's gate this slice had too few rows or days"
    elif highest < line:
        status = Status.FAIL
        reason = f"{measured}, at most {highest:.3f}, is below {line:.3f} (expected {expected.value:.3f})"
    elif found.value < line:
        status = Status.INCONCLUSIVE
        reason = f"{measured} is below {line:.3f}, but may be up to {highest:.3f}; more labels will tell"
    else:
        status, reason = Status.PASS, f"{measured} is not below {line:.3f} (expected {expected.value:.3f})"
    return SliceVerdict(feature, name, status, reason, label.size, share, found, expected.value, highest)


def _of_difference(one: Interval, other: Interval) -> tuple[float, float]:
    """Standard error of the difference of two independent values, and its degrees of freedom."""
    a, b = one.error**2, other.error**2
    spread = a**2 / one.freedom + b**2 / other.freedom
    return math.sqrt(a + b), (a + b) ** 2 / spread if spread else math.inf
