"""How far each column has moved, in each of three ways, and how likely chance alone would move it as far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np

from pipelines.spec import DriftPolicy
from validation.bars import MISSING, UNSEEN, Compared, bar_names
from validation.bins import FeatureBins
from validation.hours import moment_of
from validation.profile import ReferenceProfile
from validation.psi import chance_of_psi, psi_terms
from validation.significance import Column, Floats, Layout, chances, expected_and_seen, least_chance, rejected
from validation.windows import Comparison

Kind = Literal["values", "missing", "unseen"]
KINDS: tuple[Kind, ...] = ("values", "missing", "unseen")


LEAST_TOLD = 0.0001


@dataclass(frozen=True)
class Move:
    """One way in which a column can move.

    Attributes:
        kind: the distribution of its values, the share of rows without one, or of rows with a category never seen.
        size: in the newest window: PSI of the values, or the change of the share (-1 to 1).
        held: the least size of all windows, for shares in the same direction; what is judged. Never negative.
        chance: that chance alone moves all windows together at least as far; 1 where they moved too little to ask.
        level: 0 = not moved, 1 = watched, 2 = drifted.
        windows: how many there were.
        most: for people, what moved most.
        worst: the same as a position in `bar_names`.
        terms: what each of the bins' cells adds to the PSI of the newest window; empty for shares.
        blind: whether it would be drift, if the reference had enough days for chance to be ruled out.
    """

    kind: Kind
    size: float
    held: float
    chance: float
    level: int
    windows: int
    most: str
    worst: int
    terms: tuple[float, ...] = ()
    blind: bool = False

    def told(self) -> str:
        """The move as a clause with its numbers."""
        lasting = f" (at least {self.held:.3f} in each of {self.windows} windows)" if self.windows > 1 else ""
        if self.kind == "values":
            return f"PSI {self.size:.3f}{lasting}, {self.chance_told}, most by {self.most}"
        return f"{self.most}, {self.chance_told}"

    @property
    def chance_told(self) -> str:
        """The chance with its name; no chance is told as zero."""
        return f"chance {self.chance:.4f}" if self.chance >= LEAST_TOLD else f"chance below {LEAST_TOLD}"


def judge_moves(
    reference: ReferenceProfile, comparison: Comparison, policy: DriftPolicy
) -> tuple[tuple[Move, ...], ...]:
    """The moves of every column of the reference, in its order.

    Args:
        reference: whose bins.
        comparison: counts of the reference and of the windows.
        policy: how far matters, and how often chance may be mistaken for a move.
    """
    found: list[Move] = []
    columns: list[Column] = []
    for bins in reference.features:
        start = reference.starts[bins.feature]
        stretch = slice(start, start + len(bins.labels))
        for kind in KINDS:
            column = _column(kind, bins, comparison, stretch)
            columns.append(column)
            found.append(_measure(kind, bins, column, comparison))
    asked = [i for i, move in enumerate(found) if move.held >= _limits(move.kind, policy)[0]]
    # A number is never unseen.
    tests = len(found) - sum(bins.kind == "numeric" for bins in reference.features)
    least = 0.0
    if comparison.why_rows:
        chance = tuple(_chance_of_rows(found[i], columns[i], comparison) for i in asked)
    else:
        # The same windows must be judged alike whenever they are judged again.
        dice = np.random.default_rng(int(reference.fingerprint, 16) % 2**32)
        layout = Layout(comparison.layout.reference, (np.concatenate(comparison.layout.windows),))
        least = _of_both(least_chance(layout), least_chance(comparison.layout), len(comparison.windows))
        # All windows as one know more than each of them, but moves that undo each other vanish in their sum.
        some = [replace(columns[i], windows=(np.concatenate(columns[i].windows),)) for i in asked]
        together = chances(some, layout, tests, policy.false_alarms, dice) if asked else ()
        some = [columns[i] for i in asked]
        apart = chances(some, comparison.layout, tests, policy.false_alarms, dice) if asked else ()
        chance = tuple(_of_both(*both, len(comparison.windows)) for both in zip(together, apart, strict=True))
    for i, p, real in zip(asked, chance, rejected(chance, tests, policy.false_alarms), strict=True):
        drifted = found[i].held >= _limits(found[i].kind, policy)[1]
        # No deal is rarer than the least chance, so where that is no proof among so many tests, nothing ever is.
        blind = drifted and not real and least > policy.false_alarms / tests
        blind &= p <= max(policy.false_alarms, 2 * least)
        found[i] = replace(found[i], chance=p, level=(2 if drifted else 1) if real else 0, blind=blind)
    return tuple(tuple(found[i : i + len(KINDS)]) for i in range(0, len(found), len(KINDS)))


def compare(reference: ReferenceProfile, comparison: Comparison, position: int, moves: tuple[Move, ...]) -> Compared:
    """A column of the newest window beside what the reference makes expect of it, for people.

    Args:
        reference: whose bins.
        comparison: of the windows.
        position: of the column in the reference.
        moves: of the column.
    """
    bins = reference.features[position]
    start = reference.starts[bins.feature]
    stretch = slice(start, start + len(bins.labels))
    parts = [p[:, stretch].astype(np.float64) for p in (comparison.reference, *comparison.windows)]
    expected, seen = expected_and_seen(Column(parts[0], tuple(parts[1:]), _least_psi), comparison.layout)
    return Compared(bins, expected[0], seen[0], moves[0].terms)


def since_when(reference: ReferenceProfile, comparison: Comparison, position: int) -> datetime | None:
    """When a column that has moved began to: after it, its rows look like the newest window; before, like the reference.

    The moment that makes the rows of all windows most likely under these two distributions.

    Args:
        reference: whose bins.
        comparison: of the windows.
        position: of the column in the reference.

    Returns:
        The start of a block; of the oldest one when the move may be older still. None when rows have no time.
    """
    if not all(comparison.starts):
        return None
    bins = reference.features[position]
    start = reference.starts[bins.feature]
    stretch = slice(start, start + len(bins.labels))
    order = sorted((s, w, b) for w, starts in enumerate(comparison.starts) for b, s in enumerate(starts))
    blocks = np.stack([comparison.windows[w][b, stretch] for _, w, b in order]).astype(np.float64)
    before, after = (
        (c + 0.5) / (c + 0.5).sum()
        for c in (comparison.reference[:, stretch].sum(axis=0), comparison.windows[0][:, stretch].sum(axis=0))
    )
    # How much better the new distribution explains each block, and so all from it on.
    gain = (blocks @ np.log(after / before))[::-1].cumsum()[::-1]
    return moment_of(order[int(np.argmax(gain))][0])


def gone_since(
    reference: ReferenceProfile, comparison: Comparison, position: int, least_values: float
) -> datetime | None:
    """When a column lost all its values, which needs no window to be over.

    Args:
        reference: whose bins.
        comparison: of the windows.
        position: of the column in the reference.
        least_values: how many values there should have been since, for none to say something.

    Returns:
        The start of the first block of the newest window from which on no row has a value. None when the newest block has
        values, when blocks without any are nothing new, or rows have no time.
    """
    if not all(comparison.starts):
        return None
    bins = reference.features[position]
    start = reference.starts[bins.feature]
    stretch = slice(start, start + len(bins.labels))
    was, now = comparison.reference[:, stretch], comparison.windows[0][:, stretch]
    void, rows = bins.void_counts(was), was.sum(axis=1)
    gone = bins.void_counts(now) == now.sum(axis=1)
    blocks = int(np.logical_and.accumulate(gone[::-1]).sum())
    if not blocks or not rows.size or (void == rows).any():
        return None
    expected = now[-blocks:].sum() * (1 - void.sum() / rows.sum())
    return moment_of(comparison.starts[0][-blocks]) if expected >= least_values else None


def _limits(kind: Kind, policy: DriftPolicy) -> tuple[float, float]:
    """Sizes from which a column is watched, and has drifted."""
    if kind == "values":
        return policy.warn_at, policy.drift_at
    return policy.share_warn_at, policy.share_drift_at


def _column(kind: Kind, bins: FeatureBins, comparison: Comparison, stretch: slice) -> Column:
    parts = [p[:, stretch] for p in (comparison.reference, *comparison.windows)]
    if kind == "values":
        cells = [bins.cell_counts(p) for p in parts]
        return Column(cells[0], tuple(cells[1:]), _least_psi)
    if kind == "missing":
        cells = [np.stack([p.sum(axis=1) - bins.void_counts(p), bins.void_counts(p)], axis=1) for p in parts]
    else:  # of rows with a value: in a column of few values a new name must not hide behind the missing ones
        cells = [np.stack([bins.cell_counts(p).sum(axis=1), bins.unseen_counts(p)], axis=1) for p in parts]
    return Column(cells[0], tuple(cells[1:]), _least_change)


def _least_psi(expected: Floats, seen: Floats) -> Floats:
    """The least PSI of all windows, 0 where one has no rows; shape (..., windows, cells) -> (...)."""
    return np.asarray(np.nan_to_num(psi_terms(expected, seen).sum(axis=-1), nan=0.0).min(axis=-1))


def _least_change(expected: Floats, seen: Floats) -> Floats:
    """How much the share of the second cell has changed at least, in one direction, in all windows."""
    change = _changes(expected, seen)
    return np.asarray(np.maximum(np.maximum(change.min(axis=-1), -change.max(axis=-1)), 0.0))


def _changes(expected: Floats, seen: Floats) -> Floats:
    rows = [np.where(c.sum(axis=-1) > 0, c.sum(axis=-1), np.nan) for c in (expected, seen)]
    return np.nan_to_num(seen[..., 1] / rows[1] - expected[..., 1] / rows[0], nan=0.0)


def _measure(kind: Kind, bins: FeatureBins, column: Column, comparison: Comparison) -> Move:
    """The sizes, before anybody asked for their chance."""
    expected, seen = expected_and_seen(column, comparison.layout)
    held = float(column.statistic(expected, seen))
    was, now = (side[0] / side[0].sum() if side[0].sum() else side[0] * np.nan for side in (expected, seen))
    names, windows = bar_names(bins), len(column.windows)
    if kind == "values":
        terms = psi_terms(expected[0], seen[0])
        size = float(terms.sum())
        worst = 0 if math.isnan(size) else int(np.argmax(terms))
        most = f"{names[worst]}: {was[worst]:.1%} -> {now[worst]:.1%} of values"
        return Move(kind, size, held, 1.0, 0, windows, most, worst, tuple(terms.tolist()))
    what = "rows without a value" if kind == "missing" else "values of a category never seen"
    worst = names.index(MISSING if kind == "missing" else UNSEEN, len(bins.cells))
    most = f"{what} {was[1]:.1%} -> {now[1]:.1%}"
    return Move(kind, float(_changes(expected, seen)[0]), held, 1.0, 0, windows, most, worst)


def _of_both(together: float, apart: float, windows: int) -> float:
    """The smaller of two chances, doubled because there were two (Bonferroni); a single window has only one."""
    return together if windows == 1 else min(2 * min(together, apart), 1.0)


def _chance_of_rows(move: Move, column: Column, comparison: Comparison) -> float:
    """The chance if rows were independent."""
    expected, seen = expected_and_seen(column, comparison.layout)
    together = _chance_of_one(move.kind, expected.sum(axis=0) / len(column.windows), seen.sum(axis=0))
    apart = max(_chance_of_one(move.kind, was, now) for was, now in zip(expected, seen, strict=True))
    return _of_both(together, apart, len(column.windows))


def _chance_of_one(kind: Kind, was: Floats, now: Floats) -> float:
    if kind == "values":
        bins = int(((was > 0) | (now > 0)).sum())
        return chance_of_psi(float(psi_terms(was, now).sum()), was.sum(), now.sum(), bins)
    pooled = (was[1] + now[1]) / (was.sum() + now.sum())
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / was.sum() + 1 / now.sum()))
    change = abs(now[1] / now.sum() - was[1] / was.sum())
    return math.erfc(change / deviation / math.sqrt(2)) if deviation else 1.0
