"""What a model's scores are worth as probabilities, learned on rows it was not fitted on, with how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validation.metrics import MIN_CLASS_ROWS, Bools, Days, Floats, are_probabilities, clustered

MAX_KNOTS = 40
ROWS_PER_KNOT = 50
MIN_ROWS = 500


@dataclass(frozen=True)
class Calibration:
    """A rising curve from score to probability: straight between its knots, level beyond them.

    The covariance says how far the knots may be off by chance, since the curve was learned from few rows and few days.

    Attributes:
        scores: ascending scores of the knots, shape (k,).
        probabilities: share of true labels there, not descending, shape (k,).
        covariance: of the probabilities' sampling errors, shape (k, k).
        day_correlation: how much two rows of one day err together, 0 (not at all) to 1.
        rows: rows it was learned from.
        days: UTC days of those rows.
        lowest: lowest score of them.
        highest: highest score of them.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    day_correlation: float
    rows: int
    days: int
    lowest: float
    highest: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; at most `MAX_KNOTS` squared numbers, rounded to what they are worth."""
        described = asdict(self)
        described["covariance"] = [[float(f"{v:.6g}") for v in row] for row in self.covariance]
        return described

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Calibration:
        """The curve that `as_dict` described."""
        lists = {name: tuple(described[name]) for name in ("scores", "probabilities")}
        covariance = tuple(tuple(row) for row in described["covariance"])
        return cls(**{**described, **lists, "covariance": covariance})

    def probability(self, score: Floats) -> Floats:
        """Probability of the positive class of each score, shape (n,)."""
        return np.interp(score, self.scores, self.probabilities)

    def pull(self, score: Floats, weight: Floats) -> Floats:
        """How much a weighted sum of the rows' probabilities moves with each knot, shape (k,).

        Args:
            score: of each row, shape (n,).
            weight: of each row in the sum, shape (n,).
        """
        knots = np.asarray(self.scores)
        last = knots.size - 1
        if not last:
            return np.array([weight.sum()])
        left = np.clip(np.searchsorted(knots, score, side="right") - 1, 0, last - 1)
        share = np.clip((score - knots[left]) / (knots[left + 1] - knots[left]), 0.0, 1.0)
        pulled = np.zeros(knots.size)
        np.add.at(pulled, left, weight * (1 - share))
        np.add.at(pulled, left + 1, weight * share)
        return pulled


def calibrate(score: Floats, label: Bools, days: Days) -> Calibration | None:
    """Learn the curve on rows the model was not fitted on.

    Rows of equal number in the order of their scores (at most `MAX_KNOTS` bins, equal scores together) give a share of
    true labels each; where these fall, neighbours are pooled until none does (isotonic regression). Each pool is a knot.

    Source: Zadrozny and Elkan (KDD 2002) for isotonic calibration. Two errors of one day are taken to have one and the
    same correlation, told by the moments of the residuals (as in Donner and Klar 2000, chapter 6, for clusters), times
    G / (G - 1) because the curve has already followed the days' mean.

    Args:
        score: probabilities that the model gave, 0 to 1, shape (n,).
        label: the truth, shape (n,).
        days: the day of each row as a number, shape (n,).

    Returns:
        The curve; None with fewer than `MIN_ROWS` rows, fewer than `MIN_CLASS_ROWS` of a class, or a score that is no
        probability.
    """
    positives = int(label.sum())
    if label.size < MIN_ROWS or min(positives, label.size - positives) < MIN_CLASS_ROWS:
        return None
    if not are_probabilities(score):
        return None
    pool = _pools(score, label)
    rows = np.bincount(pool).astype(np.float64)
    probabilities = np.bincount(pool, label) / rows
    _, day = np.unique(days, return_inverse=True)
    # A pool without one of the classes is not free of error: half a row of each is added for its scatter.
    smooth = (np.bincount(pool, label) + 0.5) / (rows + 1)
    scatter = np.sqrt(smooth * (1 - smooth))
    correlation = _correlation(label - probabilities[pool], scatter[pool], day) if clustered(day) else 0.0
    by_day = np.zeros((int(day.max()) + 1, rows.size))
    np.add.at(by_day, (day, pool), (scatter / rows)[pool])
    covariance = (1 - correlation) * np.diag(scatter**2 / rows) + correlation * by_day.T @ by_day
    return Calibration(
        scores=tuple(float(s) for s in np.bincount(pool, score) / rows),
        probabilities=tuple(float(p) for p in probabilities),
        covariance=tuple(tuple(float(c) for c in row) for row in covariance),
        day_correlation=correlation,
        rows=label.size,
        days=by_day.shape[0],
        lowest=float(score.min()),
        highest=float(score.max()),
    )


def _pools(score: Floats, label: Bools) -> NDArray[np.int64]:
    """The pool of each row, from 0 in the order of scores."""
    from sklearn.isotonic import isotonic_regression

    bins = min(MAX_KNOTS, label.size // ROWS_PER_KNOT)
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    _, place = np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)
    rows = np.bincount(place).astype(np.float64)
    rising = isotonic_regression(np.bincount(place, label) / rows, sample_weight=rows)
    steps = np.concatenate([[0], np.cumsum(np.diff(rising) > 1e-12)])
    return np.asarray(steps[place], dtype=np.int64)


def _correlation(residual: Floats, scatter: Floats, day: Days) -> float:
    """The correlation of two residuals of one day, from 0 to 1."""
    days = int(day.max()) + 1
    together = days / (days - 1) * float((np.bincount(day, residual) ** 2).sum())
    pairs = float((np.bincount(day, scatter) ** 2).sum() - (scatter**2).sum())
    return float(np.clip((together - (residual**2).sum()) / pairs, 0.0, 1.0)) if pairs > 0 else 0.0
