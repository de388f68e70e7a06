"""Has the world moved: each feature's PSI against the champion's reference, and one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.spec import DriftPolicy
from validation.bins import FeatureBins, FeatureCounts
from validation.profile import SCORE, Profile, ReferenceProfile
from validation.psi import psi, psi_by_bin
from validation.verdict import Status, Verdict

NAMED = 3
"""How many drifted columns a sentence names; the table has all of them."""


@dataclass(frozen=True)
class FeatureDrift:
    """How far one feature, or the score, has moved.

    Attributes:
        feature: its name.
        psi: population stability index, rows without a value counted as one more bin; NaN when it cannot be told.
        missing_rate_reference: share of rows without a value in the reference, 0 to 1.
        missing_rate_current: the same in the current window.
        status: FAIL = drifted, PASS = not, INCONCLUSIVE = there was too little to tell.
        reason: a sentence with the numbers that decided.
        watched: whether it moved enough to be named, though not enough to be drift.
        importance: the model's importance of the feature as a share of all, 0 to 1; None when it is not known.
    """

    feature: str
    psi: float
    missing_rate_reference: float
    missing_rate_current: float
    status: Status
    reason: str
    watched: bool = False
    importance: float | None = None


@dataclass(frozen=True)
class DriftVerdict:
    """Whether the data has moved.

    Attributes:
        verdict: FAIL = it has, PASS = it has not, INCONCLUSIVE = there is too little to tell.
        features: every feature and the score, worst first.
    """

    verdict: Verdict
    features: tuple[FeatureDrift, ...]

    @property
    def drifted(self) -> tuple[FeatureDrift, ...]:
        """The features that drifted, worst first."""
        return tuple(f for f in self.features if f.status is Status.FAIL)

    @property
    def watched(self) -> tuple[FeatureDrift, ...]:
        """The features that moved without drifting, worst first."""
        return tuple(f for f in self.features if f.watched)


def detect_drift(
    reference: ReferenceProfile,
    current: Profile,
    policy: DriftPolicy,
    importance: Mapping[str, float] | None = None,
) -> DriftVerdict:
    """Judge a window against the champion's reference.

    Args:
        reference: frozen bins and counts of what the champion was held to.
        current: counts of the current window on those bins.
        policy: PSI thresholds, and the least rows that can be judged.
        importance: the champion's importance of each feature, in any unit, not negative. A feature the model does not
            use (importance 0) cannot make it worse: its drift is named and does not fail. Features it does not list,
            and the score, count in full.

    Returns:
        FAIL when the score or a feature has a PSI of at least `drift_at`, or a column that had values has none;
        INCONCLUSIVE when either side has fewer than `min_rows` rows, or nothing failed but a feature has no value on
        either side; PASS otherwise, with what is at least `warn_at` named.

    Raises:
        UsageError: the window was counted on other bins.
    """
    rows_reference, rows = reference.rows(reference.profile), reference.rows(current)
    shares = _shares(importance or {})
    found = sorted(
        (_judge(b, reference, current, policy, shares.get(b.feature)) for b in reference.features), key=_worst_first
    )
    if min(rows, rows_reference) < policy.min_rows:
        side, few = ("current window", rows) if rows < policy.min_rows else ("reference", rows_reference)
        reason = f"the {side} has {few} rows, fewer than the {policy.min_rows} that can be judged"
        found = [_undecided(f, reason) for f in found]
        return DriftVerdict(Verdict(Status.INCONCLUSIVE, reason, _measure(found, rows, rows_reference)), tuple(found))
    status = max(f.status for f in found)
    reason = _reason(found, status, rows, policy)
    return DriftVerdict(Verdict(status, reason, _measure(found, rows, rows_reference)), tuple(found))


def _judge(
    bins: FeatureBins, reference: ReferenceProfile, current: Profile, policy: DriftPolicy, share: float | None
) -> FeatureDrift:
    was, now = reference.of(reference.profile, bins.feature), reference.of(current, bins.feature)
    moved = psi(was.with_void, now.with_void)
    watched = False
    if not now.rows or not was.rows:
        status, reason = Status.INCONCLUSIVE, "there are no rows"
    elif now.void == now.rows and was.void == was.rows:
        status, reason = (
            Status.INCONCLUSIVE,
            f"no value in {was.rows} reference rows and none in {now.rows} current ones",
        )
    elif now.void == now.rows:
        status = Status.FAIL
        reason = f"the column is entirely missing ({_void(now)}); in the reference {was.void_rate:.1%} of rows were"
    else:
        drifted = moved >= policy.drift_at
        unused = share == 0.0
        status = Status.FAIL if drifted and not unused else Status.PASS
        watched = moved >= policy.warn_at and status is Status.PASS
        reason = f"PSI {moved:.3f}"
        if drifted or watched:
            limit = policy.drift_at if drifted else policy.warn_at
            reason += f" >= {limit:g}, most by {_most_moved(bins, was, now)}"
        if drifted and unused:
            reason += "; the model does not use it"
    return FeatureDrift(bins.feature, moved, was.void_rate, now.void_rate, status, reason, watched, share)


def _void(counts: FeatureCounts) -> str:
    told = (("null or NaN", counts.missing), ("no such column", counts.absent), ("unreadable type", counts.unreadable))
    return ", ".join(f"{what} in {n} of {counts.rows} rows" for what, n in told if n)


def _most_moved(bins: FeatureBins, was: FeatureCounts, now: FeatureCounts) -> str:
    worst = int(np.argmax(psi_by_bin(was.with_void, now.with_void)))
    label = (*bins.short_labels[: was.present.size], "missing")[worst]
    before, after = was.with_void[worst] / was.rows, now.with_void[worst] / now.rows
    return f"{label}: {before:.1%} -> {after:.1%} of rows"


def _shares(importance: Mapping[str, float]) -> dict[str, float]:
    total = sum(importance.values())
    return {name: value / total for name, value in importance.items()} if total > 0 else {}


def _worst_first(drift: FeatureDrift) -> tuple[int, bool, float, str]:
    weight = 1.0 if drift.importance is None else drift.importance
    moved = drift.psi * weight if np.isfinite(drift.psi) else 0.0
    return -int(drift.status), not drift.watched, -moved, drift.feature


def _undecided(drift: FeatureDrift, reason: str) -> FeatureDrift:
    return FeatureDrift(
        feature=drift.feature,
        psi=drift.psi,
        missing_rate_reference=drift.missing_rate_reference,
        missing_rate_current=drift.missing_rate_current,
        status=Status.INCONCLUSIVE,
        reason=reason,
        importance=drift.importance,
    )


def _reason(found: list[FeatureDrift], status: Status, rows: int, policy: DriftPolicy) -> str:
    watched = [f for f in found if f.watched]
    also = f"; watched (>= {policy.warn_at:g}): {_named(watched)}" if watched else ""
    if status is Status.FAIL:
        drifted = [f for f in found if f.status is status]
        more = f"; and {len(drifted) - NAMED} more" if len(drifted) > NAMED else ""
        return (
            f"{len(drifted)} of {len(found)} columns drifted in {rows} rows: {_sentences(drifted[:NAMED])}{more}{also}"
        )
    if status is Status.INCONCLUSIVE:
        return f"{_sentences(f for f in found if f.status is status)}{also}"
    most = max(found, key=lambda f: f.psi)
    return (
        f"none of {len(found)} columns drifted in {rows} rows: the most is {most.feature}, PSI {most.psi:.3f}, "
        f"below {policy.drift_at:g}{also}"
        if most.psi < policy.drift_at
        else f"none of the columns the model uses drifted in {rows} rows{also}"
    )


def _sentences(drifts: Iterable[FeatureDrift]) -> str:
    return "; ".join(f"{f.feature}: {f.reason}" for f in drifts)


def _named(drifts: list[FeatureDrift]) -> str:
    return ", ".join(f"{f.feature} {f.psi:.3f}" for f in drifts)


def _measure(found: list[FeatureDrift], rows: int, rows_reference: int) -> dict[str, float]:
    score = next((f.psi for f in found if f.feature == SCORE), float("nan"))
    finite = [f.psi for f in found if np.isfinite(f.psi)]
    return {
        "current_rows": rows,
        "reference_rows": rows_reference,
        "score_psi": score,
        "max_psi": max(finite, default=float("nan")),
        "drifted_features": sum(f.status is Status.FAIL for f in found),
        "watched_features": sum(f.watched for f in found),
    }
