from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from perennial.errors import UsageError
from validation.psi import chance_of_psi, psi, psi_by_bin

pairs = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 10_000), min_size=n, max_size=n).filter(any) for _ in range(2)))
)


@pytest.mark.parametrize(
    ("reference", "current", "expected"),
    [
        # p = 1/2, 1/2 and q = 1/4, 3/4: -1/4 ln(1/2) + 1/4 ln(3/2) = 1/4 ln 3
        ([50, 50], [25, 75], math.log(3) / 4),
        # p = .6, .4 and q = .4, .6: 2 x 1/5 ln(3/2)
        ([600, 400], [40, 60], 0.4 * math.log(1.5)),
        # p = .2, .3, .5 and q = .5, .3, .2: 2 x 3/10 ln(5/2), the middle bin adds nothing
        ([2, 3, 5], [50, 30, 20], 0.6 * math.log(2.5)),
    ],
)
def test_numbers_derived_by_hand(reference, current, expected):
    assert psi(reference, current) == pytest.approx(expected, abs=1e-12)


def test_a_bin_empty_on_one_side_counts_as_half_a_row():
    # p = 20/21, 1/21 and q = 1/2, 1/2: 19/42 ln(40/21) + 19/42 ln(21/2) = 19/42 ln 20
    assert psi([10, 0], [5, 5]) == pytest.approx(19 / 42 * math.log(20), abs=1e-12)


def test_a_bin_that_neither_side_uses_adds_nothing():
    assert psi([50, 0, 50], [25, 0, 75]) == psi([50, 50], [25, 75])
    assert psi_by_bin([50, 0, 50], [25, 0, 75])[1] == 0


@pytest.mark.parametrize(("reference", "current"), [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([0], [0]), ([], [])])
def test_without_rows_on_a_side_it_is_not_a_number(reference, current):
    assert math.isnan(psi(reference, current))


@pytest.mark.parametrize(
    ("reference", "current", "told"),
    [([1, 2], [1, 2, 3], "shapes"), ([1, -2], [1, 2], "not negative"), ([1, np.nan], [1, 2], "finite")],
)
def test_counts_that_cannot_be_compared_are_refused(reference, current, told):
    with pytest.raises(UsageError, match=told):
        psi(reference, current)


@settings(deadline=None)
@given(pairs)
def test_it_is_never_negative_and_symmetric(pair):
    assert psi(*pair) >= 0
    assert psi(*pair) == pytest.approx(psi(*reversed(pair)), rel=1e-9, abs=1e-15)


@settings(deadline=None)
@given(pairs, st.integers(2, 50))
def test_equal_shares_of_different_sizes_have_not_moved(pair, times):
    assert psi(pair[0], np.array(pair[0]) * times) == pytest.approx(0, abs=1e-12)


@settings(deadline=None)
@given(pairs)
def test_the_bins_add_up_in_any_order(pair):
    order = np.random.default_rng(len(pair[0])).permutation(len(pair[0]))
    assert psi(np.array(pair[0])[order], np.array(pair[1])[order]) == pytest.approx(psi(*pair), rel=1e-9, abs=1e-15)


def test_without_drift_its_mean_is_what_yurdakul_derives():
    # (1/N + 1/M)(B - 1) = (1/2000 + 1/1000) x 9 = 0.0135; the standard error of this mean is about 1.3 %.
    rng = np.random.default_rng(3)
    shares = np.full(10, 0.1)
    found = [psi(rng.multinomial(2000, shares), rng.multinomial(1000, shares)) for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.0135, rel=0.06)


@settings(deadline=None)
@given(st.floats(0, 2), st.integers(1, 100_000), st.integers(1, 100_000), st.integers(2, 40))
def test_its_chance_is_the_tail_of_yurdakuls_chi_square(value, reference_rows, current_rows, bins):
    # PSI is about (N + M) / (N M) times a chi-square with B - 1 degrees of freedom.
    scaled = value * reference_rows * current_rows / (reference_rows + current_rows)
    found = chance_of_psi(value, reference_rows, current_rows, bins)
    assert found == pytest.approx(chi2(bins - 1).sf(scaled), rel=1e-9, abs=1e-300)


def test_one_bin_can_only_be_equal_and_what_is_not_a_number_has_no_chance():
    assert chance_of_psi(0.0, 100, 100, 1) == 1.0
    assert chance_of_psi(0.0, 100, 100, 2) == 1.0
    assert math.isnan(chance_of_psi(math.nan, 100, 100, 5))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.5])
def test_independent_rows_of_one_distribution_reach_a_chance_as_often_as_it_says(level):
    rng = np.random.default_rng(11)
    shares = np.array([0.05, 0.1, 0.1, 0.15, 0.2, 0.4])
    sides = zip(rng.multinomial(4000, shares, 2000), rng.multinomial(1500, shares, 2000), strict=True)
    found = sum(chance_of_psi(psi(was, now), 4000, 1500, 6) <= level for was, now in sides)
    low, high = binom(2000, level).ppf([0.0005, 0.9995])
    assert low <= found <= high
