from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, false_discovery_control

from validation.psi import chance_of_psi, psi, psi_terms
from validation.significance import (
    AT_ONCE,
    DEALS,
    Column,
    Layout,
    chances,
    expected_and_seen,
    least_chance,
    rejected,
)


def least_psi(expected, seen):
    return psi_terms(expected, seen).sum(axis=-1).min(axis=-1)


def layout(reference, *windows):
    return Layout(np.array(reference), tuple(np.array(w) for w in windows))


def column(reference, *windows, statistic=least_psi):
    return Column(np.array(reference, float), tuple(np.array(w, float) for w in windows), statistic)


def dice(seed=0):
    return np.random.default_rng(seed)


def enumerated(found, strata):
    """The chance by dealing the blocks out in every way there is, with nothing but loops."""
    blocks = [*found.reference, *(b for w in found.windows for b in w)]
    stratum = [*strata.reference, *(s for w in strata.windows for s in w)]
    owner = [0] * len(found.reference) + [i for i, w in enumerate(found.windows, 1) for _ in w]
    by_stratum = []
    for g in sorted(set(stratum)):
        members = [i for i, s in enumerate(stratum) if s == g]
        ways = set(itertools.permutations(owner[i] for i in members))
        by_stratum.append([dict(zip(members, way, strict=True)) for way in ways])

    def moved(deal):
        return min(psi(*mixed(blocks, stratum, deal, window)) for window in range(1, len(found.windows) + 1))

    seen = moved(dict(enumerate(owner)))
    deals = [moved({k: v for part in parts for k, v in part.items()}) for parts in itertools.product(*by_stratum)]
    return sum(d >= seen - 1e-9 for d in deals) / len(deals), len(deals)


def mixed(blocks, stratum, deal, window):
    """Expected and seen counts of a window: the reference's shares of each stratum, as often as the window has it."""
    cells = len(blocks[0])
    seen = [sum(blocks[i][c] for i, o in deal.items() if o == window) for c in range(cells)]
    expected = [0.0] * cells
    rows = 0.0
    for g in {stratum[i] for i, o in deal.items() if o == window}:
        own = [blocks[i] for i, o in deal.items() if o == 0 and stratum[i] == g]
        total = sum(map(sum, own))
        weight = sum(sum(blocks[i]) for i, o in deal.items() if o == window and stratum[i] == g)
        rows += total
        for c in range(cells):
            expected[c] += weight * sum(b[c] for b in own) / total
    return [e / sum(expected) * rows for e in expected], seen


TINY = {
    "one window": ([0] * 6, [0] * 2),
    "weekdays": ([0, 0, 0, 1, 1, 1], [0, 1]),
    "two windows": ([0] * 4, [0, 0], [0]),
    "two windows and weekdays": ([0, 0, 1, 1, 1], [0, 1], [1]),
}


@pytest.mark.parametrize("strata", TINY.values(), ids=TINY)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_chance_is_that_of_all_deals_there_are(strata, seed):
    rng = dice(seed)
    found = column(*(rng.integers(1, 30, (len(s), 3)) for s in strata))
    expected, deals = enumerated(found, layout(*strata))
    assert least_chance(layout(*strata)) == pytest.approx(1 / deals)
    # Ten times at least 2,500 deals: a standard error of at most 0.0032.
    runs = [chances([found], layout(*strata), 1, 0.01, dice(s))[0] for s in range(10)]
    assert np.mean(runs) == pytest.approx(expected, abs=0.013)


def test_the_least_chance_is_one_over_the_deals():
    assert least_chance(layout([0] * 56, [0] * 6)) == pytest.approx(1 / math.comb(62, 6))
    assert least_chance(layout([0] * 8 + [1] * 8, [0, 1])) == pytest.approx(1 / 81)
    assert least_chance(layout([0], [1])) == 1.0
    assert least_chance(layout([0] * 3000, [0] * 1500)) < 1e-300


def days(rng, count, rows=40, spread=1.0):
    """Counts by day of rows that share their day's level, on six bins."""
    level = rng.normal(0, spread, count)[:, None]
    values = level + rng.normal(0, 0.3, (count, rows))
    return np.stack([np.bincount(np.digitize(v, [-1, -0.4, 0, 0.4, 1]), minlength=6) for v in values])


def test_days_that_are_alike_seldom_look_moved_however_much_their_rows_hang_together():
    rng = dice(7)
    sets = [column(days(rng, 24), days(rng, 4)) for _ in range(200)]
    found = np.array(chances(sets, layout([0] * 24, [0] * 4), len(sets), 0.5, dice()))
    for level in (0.05, 0.2, 0.5):
        low, high = binom(len(sets), level).ppf([0.0005, 0.9995])
        assert low <= (found <= level).sum() <= high
    # Taken for independent, the same rows cry drift nearly every time: that is why days are shuffled.
    sums = [(c.reference.sum(axis=0), c.windows[0].sum(axis=0)) for c in sets]
    alone = [chance_of_psi(psi(was, now), was.sum(), now.sum(), 6) for was, now in sums]
    assert np.mean(np.array(alone) <= 0.05) > 0.9


def test_a_window_that_differs_from_every_day_is_found_in_the_midst_of_them():
    rng = dice(8)
    moved = column(days(rng, 40), [[0, 0, 0, 0, 0, 40]] * 6)
    alike = column(days(rng, 40), days(rng, 6))
    found = chances([alike, moved], layout([0] * 40, [0] * 6), 2, 0.01, dice())
    assert found[1] < 0.001 < found[0]


def test_blocks_of_different_strata_are_never_mixed():
    # Mondays have only the first bin, Tuesdays only the second: every deal that keeps to them looks like the window.
    worst = []

    def farthest(expected, seen):
        shares = [side / side.sum(axis=-1, keepdims=True) for side in (expected, seen)]
        worst.append(float(np.abs(shares[0] - shares[1]).max()))
        return least_psi(expected, seen)

    monday, tuesday = [9.0, 0.0], [0.0, 5.0]
    found = column([monday] * 5 + [tuesday] * 4, [monday, tuesday, tuesday], statistic=farthest)
    kept_apart = chances([found], layout([0] * 5 + [1] * 4, [0, 1, 1]), 1, 0.01, dice())
    assert kept_apart == (1.0,)
    assert max(worst) < 1e-12
    worst.clear()
    chances([found], layout([0] * 9, [0] * 3), 1, 0.01, dice())
    assert max(worst) > 0.1


def test_a_window_is_held_against_the_references_days_of_its_own_mix():
    # Shares .8, .2 of stratum 0 and .25, .75 of stratum 1; the window has 30 rows of the one and 10 of the other:
    # .75 x (.8, .2) + .25 x (.25, .75) = (.6625, .3375), of the reference's 10 + 40 rows.
    found = column([[5, 1], [3, 1], [10, 30]], [[20, 10], [4, 6]])
    expected, seen = expected_and_seen(found, layout([0, 0, 1], [0, 1]))
    np.testing.assert_allclose(expected, [[33.125, 16.875]])
    np.testing.assert_allclose(seen, [[24, 16]])


def test_rows_of_a_stratum_that_the_reference_lacks_are_left_out():
    strata = layout([0, 0], [0, 7])
    assert strata.unmatched.tolist() == [7]
    expected, seen = expected_and_seen(column([[5, 5], [5, 5]], [[3, 1], [900, 0]]), strata)
    np.testing.assert_allclose(expected, [[10, 10]])
    np.testing.assert_allclose(seen, [[3, 1]])


def test_nothing_is_expected_of_a_window_without_rows():
    expected, seen = expected_and_seen(column([[5, 5]], [[0, 0]]), layout([0], [0]))
    np.testing.assert_allclose([expected, seen], [[[0, 0]], [[0, 0]]])


def test_the_chance_is_never_zero_and_smaller_the_more_columns_there_are():
    moved = column([[10, 0]] * 40, [[0, 10]] * 6)
    strata = layout([0] * 40, [0] * 6)
    assert chances([moved], strata, 10, 0.01, dice()) == (1 / (1 + DEALS),)
    # 2 x 1,000 / 0.01 deals can show a chance that is half of what the strictest of 1,000 tests asks for.
    (found,) = chances([moved], strata, 1_000, 0.01, dice())
    assert found == pytest.approx(1 / 200_001)
    assert rejected([found], 1_000, 0.01) == (True,)


def test_what_chance_explains_needs_few_deals():
    asked = []

    def counting(expected, seen):
        asked.append(1 if expected.ndim == 2 else len(expected))
        return least_psi(expected, seen)

    alike = column([[10, 9], [9, 10]] * 10, [[10, 9], [9, 10]], statistic=counting)
    chances([alike], layout([0] * 20, [0] * 2), 10_000, 0.01, dice())
    assert asked == [1, AT_ONCE]


def test_the_same_dice_give_the_same_chance():
    rng = dice(5)
    some, strata = [column(days(rng, 20), days(rng, 4)) for _ in range(3)], layout([0] * 20, [0] * 4)
    assert chances(some, strata, 3, 0.01, dice(1)) == chances(some, strata, 3, 0.01, dice(1))
    assert chances(some, strata, 3, 0.01, dice(1)) != chances(some, strata, 3, 0.01, dice(2))


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=30), st.integers(0, 30), st.floats(0.001, 0.5))
def test_what_is_rejected_is_what_benjamini_and_hochberg_reject(some, others, rate):
    tests = len(some) + others
    adjusted = false_discovery_control([*some, *[1.0] * others])[: len(some)]
    assume(not np.isclose(adjusted, rate, rtol=1e-9).any())
    assert rejected(some, tests, rate) == tuple(bool(a <= rate) for a in adjusted)


def test_nothing_is_rejected_of_nothing():
    assert rejected([], 10, 0.01) == ()
