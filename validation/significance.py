"""Could chance alone have moved the data this much? Answered by shuffling whole days.

Rows of one day share its weather and its delays, so a week of ten thousand rows knows as little about the temperature as
seven numbers do. A test that takes rows for independent calls every week a drift. Here the days of the reference and of
the windows are dealt out anew, thousands of times: where that often makes windows that differ as much, chance explains it.
If the days are exchangeable, such a chance is exact, whatever the distribution and however the rows of a day hang together.

Source: Ernst, Permutation Methods (Statistical Science 19, 2004); Phipson and Smyth (2010) for counting the deal that was
seen; Benjamini and Hochberg (J. R. Stat. Soc. B 57, 1995) for many columns at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]

DEALS = 10_000
MOST_DEALS = 1_000_000
AT_ONCE = 2_500
ENOUGH = 20
"""Deals as extreme as what was seen, after which its chance is known well enough: it is no small one."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column's counts by block, and how its moves are measured.

    Attributes:
        reference: shape (reference blocks, cells).
        windows: one array a window, shape (blocks of the window, cells).
        statistic: (expected, seen), both of shape (..., windows, cells) -> how far it has moved, shape (...).
    """

    reference: Floats
    windows: tuple[Floats, ...]
    statistic: Statistic


@dataclass(frozen=True, eq=False)
class Layout:
    """Which blocks may change places: those of one stratum, such as all Mondays.

    Attributes:
        reference: stratum of each reference block.
        windows: of each block of each window.
    """

    reference: NDArray[np.int64]
    windows: tuple[NDArray[np.int64], ...]

    @property
    def unmatched(self) -> NDArray[np.int64]:
        """Strata of the windows that the reference does not have."""
        return np.setdiff1d(np.concatenate(self.windows), self.reference)


def expected_and_seen(column: Column, layout: Layout) -> tuple[Floats, Floats]:
    """What the reference makes expect of each window, by its mix of strata, and what was seen; shape (windows, cells).

    The expected counts add up to the reference's rows of the strata that the window has.
    """
    masks = [[(layout.reference == g)[None].astype(float) for g in _strata(layout)]]
    masks += [[(window == g)[None].astype(float) for g in _strata(layout)] for window in layout.windows]
    parts = [column.reference, *column.windows]
    sums = [np.stack([mask @ part for mask in row]) for row, part in zip(masks, parts, strict=True)]
    expected, seen = _expect(sums[0], sums[1:])
    return expected[0], seen[0]


def chances(
    columns: Sequence[Column], layout: Layout, tests: int, rate: float, dice: np.random.Generator
) -> tuple[float, ...]:
    """How often a random deal of the blocks moves each column at least as much as was seen.

    Args:
        columns: those that moved enough to matter; the others need no chance.
        layout: of all of them.
        tests: how many were looked at, those included.
        rate: of false alarms; decides how small a chance must be told from zero.
        dice: of the deals.

    Returns:
        (1 + deals as extreme) / (1 + deals), never 0, one a column.
    """
    seen = [float(c.statistic(*expected_and_seen(c, layout))) for c in columns]
    extreme, deals = np.zeros(len(columns), dtype=np.int64), np.zeros(len(columns), dtype=np.int64)
    target = DEALS
    while True:
        waiting = [i for i in range(len(columns)) if extreme[i] < ENOUGH and deals[i] < target]
        if not waiting:
            found = (1 + extreme) / (1 + deals)
            # Among many columns a chance must be tinier than so few deals can tell.
            tiny = (extreme == 0) & ~np.array(rejected(found, tests, rate), dtype=bool)
            if not tiny.any() or target >= min(2 * tests / rate, MOST_DEALS):
                return tuple(float(p) for p in found)
            target = math.ceil(min(2 * tests / rate, MOST_DEALS))
            continue
        dealt = _deal(layout, dice)
        for i in waiting:
            blocks = np.concatenate([columns[i].reference, *columns[i].windows])
            sums = [np.stack([mask @ blocks[members] for members, mask in part]) for part in dealt]
            found = columns[i].statistic(*_expect(sums[0], sums[1:]))
            # What was seen is itself a deal; rounding must not let its twins fall short of it.
            extreme[i] += int((found >= seen[i] * (1 - 1e-9)).sum())
            deals[i] += AT_ONCE


def least_chance(layout: Layout) -> float:
    """The least chance that any move could have: there are no more deals than one over it."""
    deals = 1
    for stratum in _strata(layout):
        left = int((layout.reference == stratum).sum())
        for window in layout.windows:
            members = int((window == stratum).sum())
            left += members
            deals *= math.comb(left, members)
    return 1 / deals


def rejected(chance: Sequence[float] | Floats, tests: int, rate: float) -> tuple[bool, ...]:
    """Which of some chances are too small for chance, so that at most `rate` of such findings are false.

    Benjamini and Hochberg's step-up procedure. Where nothing has moved, any finding is false, and `rate` bounds how often
    there is one.

    Args:
        chance: some of the tests' chances, each 0 to 1; the others' count as 1.
        tests: how many tests there were.
        rate: 0 to 1.
    """
    sizes = np.sort(np.asarray(chance, dtype=np.float64))
    below = np.flatnonzero(sizes <= rate * np.arange(1, sizes.size + 1) / tests)
    limit = sizes[below[-1]] if below.size else -1.0
    return tuple(bool(p <= limit) for p in chance)


def _strata(layout: Layout) -> NDArray[np.int64]:
    return np.unique(np.concatenate([layout.reference, *layout.windows]))


def _deal(layout: Layout, dice: np.random.Generator) -> list[list[tuple[NDArray[np.int64], Floats]]]:
    """`AT_ONCE` deals: of the reference and of each window, by stratum, the members and who of them it was dealt."""
    strata = np.concatenate([layout.reference, *layout.windows])
    owner = np.concatenate([np.full(s.size, i) for i, s in enumerate([layout.reference, *layout.windows])])
    dealt: list[list[tuple[NDArray[np.int64], Floats]]] = [[] for _ in range(1 + len(layout.windows))]
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        owners = dice.permuted(np.tile(owner[members], (AT_ONCE, 1)), axis=1)
        for i, part in enumerate(dealt):
            part.append((members, (owners == i).astype(float)))
    return dealt


def _expect(reference: Floats, windows: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Expected and seen counts, shape (deals, windows, cells), from sums by stratum, shape (strata, deals, cells)."""
    rows = reference.sum(axis=-1, keepdims=True)
    shares = np.divide(reference, rows, out=np.zeros_like(reference), where=rows > 0)
    expected, seen = [], []
    for window in windows:
        here = window.sum(axis=-1, keepdims=True)
        matched = np.where(rows > 0, here, 0.0)
        total = matched.sum(axis=0)
        mixed = np.divide((matched * shares).sum(axis=0), total, out=np.zeros(shares.shape[1:]), where=total > 0)
        expected.append(mixed * np.where(matched > 0, rows, 0.0).sum(axis=0))
        seen.append(np.where(rows > 0, window, 0.0).sum(axis=0))
    return np.stack(expected, axis=-2), np.stack(seen, axis=-2)
