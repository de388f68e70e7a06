"""What one version did with the requests it got: counts that add up over replicas and time."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np
import numpy.typing as npt

# Each edge is a quarter above the one before: 0.1 ms to 11 s, so a percentile is known to within 25 %. Frozen, because
# counts on other edges would not add up with those already stored.
LATENCY_EDGES_MS: tuple[float, ...] = tuple(0.1 * 1.25**i for i in range(53))
NO_LATENCIES: tuple[int, ...] = (0,) * (len(LATENCY_EDGES_MS) + 1)

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ArmObservation:
    """Mergeable sums over the requests of one version; `a + b` is the observation of both.

    Attributes:
        requests: rows the version was asked to score.
        errors: rows it gave no usable score for: it raised, could not be loaded, or the score was invalid.
        invalid: the errors that were a score outside [0, 1] or NaN.
        failed_calls: calls that gave nothing; all their rows are errors, of one cause.
        latency_counts: calls by latency; count i is of (edge i-1, edge i] of LATENCY_EDGES_MS, the last one above all.
        pairs: rows that the champion scored too.
        disagreement_sum: sum over the pairs of |own score - champion's score|.
        disagreement_squares: sum over the pairs of its square.
        score_sum: sum of the valid scores.
    """

    requests: int = 0
    errors: int = 0
    invalid: int = 0
    failed_calls: int = 0
    latency_counts: tuple[int, ...] = NO_LATENCIES
    pairs: int = 0
    disagreement_sum: float = 0.0
    disagreement_squares: float = 0.0
    score_sum: float = 0.0

    def __add__(self, other: ArmObservation) -> ArmObservation:
        mine, theirs = self.latency_counts, other.latency_counts
        return ArmObservation(
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
            latency_counts=tuple(a + b for a, b in zip(mine, theirs, strict=True)),
        )

    @property
    def error_rate(self) -> float:
        """Errors over requests; nan without requests."""
        return self.errors / self.requests if self.requests else math.nan

    @property
    def calls(self) -> int:
        """Calls that were timed; one call scores one or more rows."""
        return sum(self.latency_counts)

    @property
    def attempts(self) -> int:
        """Calls, those that failed too."""
        return self.calls + self.failed_calls

    @property
    def latency_p99_ms(self) -> float:
        """The 99th percentile of the calls' latency, in ms, interpolated within its bucket; nan without calls."""
        return _percentile(self.latency_counts, 0.99)

    @property
    def mean_disagreement(self) -> float:
        """Mean absolute difference to the champion's scores on the same rows; nan without pairs."""
        return self.disagreement_sum / self.pairs if self.pairs else math.nan

    @property
    def mean_score(self) -> float:
        """Mean of the valid scores; nan without any."""
        valid = self.requests - self.errors
        return self.score_sum / valid if valid else math.nan

    def calls_slower_than(self, limit_ms: float) -> int:
        """Calls that certainly took longer than the limit: those of buckets that lie above it whole."""
        return sum(self.latency_counts[bisect_left(LATENCY_EDGES_MS, limit_ms) + 1 :])


@dataclass(frozen=True)
class ObservationRow:
    """What one replica saw of one version under one ledger entry between two flushes; the first five name it.

    Attributes:
        pipeline: whose traffic.
        sequence: the entry that was in force.
        version: the model that was asked.
        replica: the process that asked, unique for each start of it.
        flush: counts the replica's flushes; a row that is sent twice is stored once.
        at: wall-clock time of the row's first request, UTC.
        observed: the counts.
    """

    pipeline: str
    sequence: int
    version: str
    replica: str
    flush: int
    at: datetime
    observed: ArmObservation


_SUMS = tuple(f.name for f in fields(ArmObservation) if f.name != "latency_counts")


def is_valid(scores: Scores) -> npt.NDArray[np.bool_]:
    """Which scores are probabilities: (n,) booleans, false for NaN and anything outside [0, 1]."""
    return (scores >= 0.0) & (scores <= 1.0)  # false for NaN


def failed(rows: int) -> ArmObservation:
    """The observation of one call with that many rows in which a version raised or was not there."""
    return ArmObservation(requests=rows, errors=rows, failed_calls=1)


def scored(scores: Scores, latency_ms: float, champion: Scores | None = None) -> ArmObservation:
    """The observation of one call.

    Args:
        scores: (n,) what the version answered.
        latency_ms: how long the call took.
        champion: (n,) the champion's scores of the same rows; None = not compared. Rows where either score is invalid
            are no pair.
    """
    valid = is_valid(scores)
    invalid = len(scores) - int(valid.sum())
    counts = list(NO_LATENCIES)
    counts[bisect_left(LATENCY_EDGES_MS, latency_ms)] = 1
    if champion is None:
        apart = np.empty(0)
    else:
        both = valid & is_valid(champion)
        apart = np.abs(scores[both] - champion[both])
    return ArmObservation(
        requests=len(scores),
        errors=invalid,
        invalid=invalid,
        latency_counts=tuple(counts),
        pairs=len(apart),
        disagreement_sum=float(apart.sum()),
        disagreement_squares=float(apart @ apart),
        score_sum=float(scores[valid].sum()),
    )


def _percentile(counts: tuple[int, ...], share: float) -> float:
    rank = math.ceil(share * sum(counts))
    below = 0
    for i, count in enumerate(counts):
        if count and below + count >= rank:
            low = LATENCY_EDGES_MS[i - 1] if i else 0.0
            if i == len(LATENCY_EDGES_MS):
                return low
            return low + (LATENCY_EDGES_MS[i] - low) * (rank - below) / count
        below += count
    return math.nan
