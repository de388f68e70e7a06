"""Has the world moved: each column of the last windows against the champion's reference, and one verdict.

A column has moved when it has moved far enough to matter in every one of the windows, *and* all of them together further
than chance would move them. Far enough: the PSI of its values, or the share of its rows without a value, or of a category
never seen. Chance: whole days are shuffled (validation/significance.py), and among many columns it must be smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from perennial.errors import UsageError
from pipelines.spec import DriftPolicy
from validation.bars import MISSING, Compared, bar_names, medians_told
from validation.moves import Move, compare, gone_since, judge_moves, since_when
from validation.profile import SCORE, ReferenceProfile
from validation.verdict import Status, Verdict
from validation.windows import Comparison, Window, lay_out

NAMED = 3
"""How many drifted columns a sentence names; the table has all of them."""
MORE_DAYS = "make drift.reference_s or drift.persistence larger"
ROWS_PER_VALUE = 5
"""A column needs a fifth as many values as a window needs rows: of fewer, a dozen bins may show anything."""
MOST_UNMATCHED = 0.1
"""Larger a share of a window's rows on weekdays that the reference lacks, and it cannot be judged."""


@dataclass(frozen=True)
class FeatureDrift:
    """How far one feature, or the score, has moved.

    Attributes:
        feature: its name.
        psi: population stability index of its values in the newest window; NaN when it cannot be told.
        missing_rate_reference: share of rows without a value in the reference, 0 to 1.
        missing_rate_current: the same in the newest window.
        status: FAIL = drifted, PASS = not, INCONCLUSIVE = there was too little to tell.
        reason: a sentence with the numbers that decided.
        watched: whether it moved enough to be named, though not enough, or not where it matters, to be drift.
        importance: the model's importance of the feature as a share of all, 0 to 1; None when it is not known.
        moves: of its values, missing rows and unseen categories, each with its chance.
        since: when the move began, as far as the windows reach back; None when it has not moved, or has no times.
        matters: whether the model makes enough of it for its drift to be a FAIL.
        compared: its rows by bin on both sides, as they were judged.
    """

    feature: str
    psi: float
    missing_rate_reference: float
    missing_rate_current: float
    status: Status
    reason: str
    watched: bool = False
    importance: float | None = None
    moves: tuple[Move, ...] = ()
    since: datetime | None = None
    matters: bool = True
    compared: Compared | None = field(default=None, compare=False)

    @property
    def lost_values(self) -> bool:
        """Whether all that its sentence names is that more rows than before have no value."""
        if self.compared is None or not self.missing_rate_current > self.missing_rate_reference:
            return False
        return self.compared.named == (bar_names(self.compared.bins).index(MISSING, len(self.compared.bins.cells)),)


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
    windows: Sequence[Window],
    policy: DriftPolicy,
    importance: Mapping[str, float] | None = None,
) -> DriftVerdict:
    """Judge the last windows against the champion's reference.

    Args:
        reference: frozen bins and counts of what the champion was held to.
        windows: counts on those bins, the newest first; as many as must show a move.
        policy: how far is far enough, how often chance may be mistaken for drift, and the least rows that can be judged.
        importance: the champion's importance of each feature, in any unit, not negative. A feature with a smaller share
            than `matters_from`, and than half of what each has on average, cannot make the model much worse: its drift is
            named and does not fail. Features it does not list, and the score, count in full.

    Returns:
        FAIL when the score or a feature that matters has drifted in every window, or any has lost all its values in the
        newest one; INCONCLUSIVE when a window does not reach over its time, either side has fewer than `min_rows` rows,
        or nothing failed but a feature has no value, or has moved and the reference is too short to rule out chance;
        PASS otherwise, with what moved less named.

    Raises:
        UsageError: there is no window, or one was counted on other bins.
    """
    if not windows or any(w.reference != reference.fingerprint for w in windows):
        raise UsageError(
            f"drift needs windows counted on the bins of {reference.fingerprint}; profile them on the current reference."
        )
    comparison = lay_out(reference, windows, policy.seasonal)
    moves = judge_moves(reference, comparison, policy)
    shares = _shares(importance or {})
    # Of a hundred features that matter alike, none has 2 %.
    least_share = min(policy.matters_from, 0.5 / max(len(shares), 1))
    found = [
        _judge(b.feature, i, reference, comparison, moves[i], policy, shares.get(b.feature), least_share)
        for i, b in enumerate(reference.features)
    ]
    first = slice(0, len(reference.features[0].labels))
    rows = min(int(w.counts[:, first].sum()) for w in windows)
    rows_reference = reference.rows(reference.profile)
    too_little = _too_little(windows, rows, rows_reference, comparison, policy)
    if too_little:
        enough = min(rows_reference, int(windows[0].counts[:, first].sum())) >= policy.min_rows
        found = [f if enough and _is_gone(f) else _undecided(f, too_little) for f in found]
    found.sort(key=_worst_first)
    status = max([*(f.status for f in found), *([Status.INCONCLUSIVE] if too_little else [])])
    reason = too_little if too_little and status is Status.INCONCLUSIVE else _reason(found, status, rows, comparison)
    if too_little and status is Status.FAIL:
        reason += f"; of the others nothing can be told, because {too_little}"
    return DriftVerdict(Verdict(status, reason, _measure(found, rows, rows_reference)), tuple(found))


def _judge(
    feature: str,
    position: int,
    reference: ReferenceProfile,
    comparison: Comparison,
    moves: tuple[Move, ...],
    policy: DriftPolicy,
    share: float | None,
    least_share: float,
) -> FeatureDrift:
    bins = reference.features[position]
    start = reference.starts[feature]
    stretch = slice(start, start + len(bins.labels))
    was = np.array(reference.counts[stretch])
    now = comparison.windows[0][:, stretch].sum(axis=0)
    rates = [float(bins.void_counts(c) / c.sum()) if c.sum() else float("nan") for c in (was, now)]
    level = max(move.level for move in moves)
    matters = share is None or share >= least_share
    watched, least = False, policy.min_rows // ROWS_PER_VALUE
    gone = gone_since(reference, comparison, position, least)
    compared = compare(reference, comparison, position, moves)
    void, named = bar_names(bins).index(MISSING, len(bins.cells)), []
    if not now.sum() or not was.sum():
        status, reason = Status.INCONCLUSIVE, "there are no rows"
    elif rates == [1.0, 1.0]:
        status = Status.INCONCLUSIVE
        reason = f"no value in {was.sum()} reference rows and none in {now.sum()} current ones"
    elif rates[0] == 1.0 and level < 2:
        status = Status.INCONCLUSIVE
        reason = f"no value in {was.sum()} reference rows; {rates[1]:.1%} of {now.sum()} current ones have none"
    elif rates[1] == 1.0 and rates[1] - rates[0] < policy.share_drift_at:
        status = Status.INCONCLUSIVE
        reason = f"no value in {now.sum()} current rows; in the reference {rates[0]:.1%} of rows had none"
    elif rates[1] == 1.0:
        status = Status.FAIL
        reason = f"the column is entirely missing ({_void(now)}); in the reference {rates[0]:.1%} of rows were"
        named = [void]
    elif gone:
        status = Status.FAIL
        reason = (
            f"no row has had a value since {gone:%Y-%m-%d %H:%M} UTC; in the reference {rates[0]:.1%} of rows had none"
        )
        named = [void]
    else:
        blind = matters and level < 2 and any(move.blind for move in moves)
        few = min(int(c.sum() - bins.void_counts(c)) for c in (was, now))
        scarce = matters and level < 2 and few < least
        status = Status.FAIL if level == 2 and matters else Status.INCONCLUSIVE if blind or scarce else Status.PASS
        watched = level > 0 and status is Status.PASS
        moving = [move for move in moves if (move.blind if blind else move.level == level > 0)]
        reason = ", and ".join(_told(move, compared) for move in moving) or _unmoved(moves[0], policy)
        named = [move.worst for move in moving]
        if scarce:
            reason += f"; {few} values in the reference or the newest window, fewer than the {least} that can be judged"
        if blind:
            reason += f"; too few days to rule out chance, {MORE_DAYS}"
        if level == 2 and not matters:
            reason += (
                f"; the model hardly uses it ({share:.1%} of its importance)"
                if share
                else "; the model does not use it"
            )
    since = gone
    if not gone and (watched or status is Status.FAIL):
        since = since_when(reference, comparison, position)
    return FeatureDrift(
        feature,
        moves[0].size,
        rates[0],
        rates[1],
        status,
        reason,
        watched,
        share,
        moves,
        since,
        matters,
        replace(compared, named=tuple(named)),
    )


def _told(move: Move, compared: Compared) -> str:
    """A move as a clause; where a middle has moved, that first, which needs no bins to be understood."""
    medians = medians_told(compared) if move.kind == "values" else ""
    return f"{medians}, {move.told()}" if medians else move.told()


def _unmoved(values: Move, policy: DriftPolicy) -> str:
    """A PSI that is no drift; where it would be far enough, why it is not."""
    told = _psi_told(values.size)
    if not values.size >= policy.warn_at:
        return told
    if values.held < policy.warn_at:
        return f"{told}, but only {values.held:.3f} in one of the {values.windows} windows"
    return f"{told}, which chance may bring ({values.chance_told})"


def _psi_told(psi: float) -> str:
    return f"PSI {psi:.3f}" if np.isfinite(psi) else "there is no value that both sides know"


def _void(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    missing, absent, unreadable = (int(n) for n in counts[-3:])
    told = (("null or NaN", missing), ("no such column", absent), ("unreadable type", unreadable))
    return ", ".join(f"{what} in {n} of {int(counts.sum())} rows" for what, n in told if n)


def _too_little(
    windows: Sequence[Window], rows: int, rows_reference: int, comparison: Comparison, policy: DriftPolicy
) -> str | None:
    """Why nothing can be judged, if so."""
    if rows_reference < policy.min_rows:
        return f"the reference has {rows_reference} rows, fewer than the {policy.min_rows} that can be judged"
    gaps = [w.coverage for w in windows if not w.coverage.passed]
    if gaps:
        return gaps[0].reason
    if rows < policy.min_rows:
        which = "the current window" if len(windows) == 1 else f"one of the last {len(windows)} windows"
        return f"{which} has {rows} rows, fewer than the {policy.min_rows} that can be judged"
    unmatched = comparison.layout.unmatched
    alone = [np.isin(s, unmatched) for s in comparison.layout.windows]
    for counts, odd in zip(comparison.windows, alone, strict=True):
        share = counts[odd].sum() / max(counts.sum(), 1)
        if share > MOST_UNMATCHED:
            return (
                f"{share:.0%} of a window's rows are of weekdays that the reference does not have; "
                "make drift.reference_s at least two weeks"
            )
    return None


def _is_gone(drift: FeatureDrift) -> bool:
    """Whether a column lost all its values, which needs no second window to be sure of."""
    return drift.status is Status.FAIL and drift.missing_rate_current == 1.0


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
        moves=drift.moves,
        compared=drift.compared and replace(drift.compared, named=()),
    )


def _reason(found: list[FeatureDrift], status: Status, rows: int, comparison: Comparison) -> str:
    watched = [f for f in found if f.watched]
    also = f"; watched: {', '.join(f.feature for f in watched)}" if watched else ""
    if comparison.why_rows:
        also += f"; rows counted as independent, because {comparison.why_rows}"
    count = len(comparison.windows)
    over = f"{rows} rows" if count == 1 else f"{count} windows of {rows} rows or more"
    if status is Status.FAIL:
        drifted = [f for f in found if f.status is status]
        more = f"; and {len(drifted) - NAMED} more" if len(drifted) > NAMED else ""
        score = next((f for f in found if f.feature == SCORE and f.status is Status.PASS and not f.watched), None)
        also += f"; the score has not moved ({score.reason})" if score else ""
        return f"{len(drifted)} of {len(found)} columns drifted in {over}: {_sentences(drifted[:NAMED])}{more}{also}"
    if status is Status.INCONCLUSIVE:
        return f"{_sentences(f for f in found if f.status is status)}{also}"
    most = max(found, key=lambda f: f.psi if np.isfinite(f.psi) else -1.0)
    values = next(m for m in most.moves if m.kind == "values")
    why = ""
    if values.chance < 1 and not values.level:
        alike = "so few rows may by chance" if comparison.why_rows else "its days differ among themselves"
        why = f", as {alike} ({values.chance_told})"
    return (
        f"none of {len(found)} columns drifted in {over}: the most is {most.feature}, {_psi_told(most.psi)}{why}{also}"
    )


def _sentences(drifts: Iterable[FeatureDrift]) -> str:
    return "; ".join(f"{f.feature}: {f.reason}" for f in drifts)


def _measure(found: list[FeatureDrift], rows: int, rows_reference: int) -> dict[str, float]:
    score = next((f.psi for f in found if f.feature == SCORE), float("nan"))
    finite = [f.psi for f in found if np.isfinite(f.psi)]
    drifted = [f for f in found if f.status is Status.FAIL]
    return {
        "current_rows": rows,
        "reference_rows": rows_reference,
        "score_psi": score,
        "max_psi": max(finite, default=float("nan")),
        "drifted_features": len(drifted),
        "drifted_importance": sum(f.importance or 0.0 for f in drifted),
        "watched_features": sum(f.watched for f in found),
        "smallest_chance": min((m.chance for f in found for m in f.moves), default=float("nan")),
    }
