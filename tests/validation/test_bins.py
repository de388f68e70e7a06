from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from validation.bins import TOP_CATEGORIES, FeatureBins, bins_of
from validation.psi import psi


def counted(bins: FeatureBins, values: list[float | None]) -> dict[str, float]:
    """Counts by cell, as PSI compares them."""
    codes = bins.assign(pl.DataFrame({bins.feature: pl.Series(values, dtype=pl.Float64)}))
    counts = np.bincount(codes, minlength=len(bins.labels))
    return dict(zip(bins.cells, bins.cell_counts(counts).tolist(), strict=True))


def numbers(values: list[float], bins: int = 10) -> FeatureBins:
    return bins_of(pl.Series(values, dtype=pl.Float64), "x", "numeric", bins)


def test_a_value_that_holds_a_quantile_by_itself_has_its_own_bin():
    bins = numbers([0.0] * 70 + [float(i) for i in range(1, 31)])
    assert bins.labels[0] == "=0.0"
    found = bins.assign(pl.DataFrame({"x": [0.0, 0.5]}))
    assert found[0] != found[1]


def test_what_is_outside_the_reference_belongs_to_its_outermost_bins():
    # Four bins of 1..32 end at 1, 8, 16, 24, 32, and a quarter of the outermost is parted: 1, 2 and 30, 32.
    bins = numbers([float(i) for i in range(1, 33)], 4)
    assert bins.cells == ("[1, 2)", "[2, 8)", "[8, 16)", "[16, 24)", "[24, 30)", "[30, 32]")
    found = counted(bins, [-99.0, 1.0, 2.0, 32.0, 33.0, 1e300])
    assert list(found.values()) == [2, 1, 0, 0, 0, 3]


@pytest.mark.parametrize(
    ("values", "outside"),
    [
        ([0.0] * 20 + [float(i) for i in range(1, 81)], ("below 0",)),
        ([float(i) for i in range(1, 81)] + [99.0] * 20, ("above 99",)),
        ([0.0] * 20 + [float(i) for i in range(1, 61)] + [99.0] * 20, ("below 0", "above 99")),
        ([5.0] * 9, ("below 5", "above 5")),
        ([], ("below", "above")),
    ],
)
def test_what_is_outside_stands_alone_beside_a_bin_of_one_value(values, outside):
    bins = numbers(values)
    assert tuple(cell for cell in bins.cells if not cell.startswith(("=", "["))) == outside
    found = counted(bins, [-7.0, 1e6])
    assert sum(found.values()) == 2
    for side, cell in (("below", 0), ("above", -1)):
        alone = [name for name in outside if name.startswith(side)]
        if alone and values:
            assert found[alone[0]] == 1
        elif values:
            assert found[bins.cells[cell]] == 1


def test_rows_without_a_value_and_of_unseen_categories_are_no_cells():
    bins = FeatureBins("c", "categorical", categories=("a", "b"), others=("z",))
    assert bins.labels == ("=a", "=b", "other", "unseen", "missing", "absent", "unreadable")
    counts = np.array([[10, 20, 3, 4, 5, 6, 7], [1, 0, 0, 0, 0, 0, 9]])
    assert bins.cells == ("=a", "=b", "other")
    np.testing.assert_array_equal(bins.cell_counts(counts), [[10, 20, 3], [1, 0, 0]])
    np.testing.assert_array_equal(bins.void_counts(counts), [18, 9])
    np.testing.assert_array_equal(bins.unseen_counts(counts), [4, 0])
    np.testing.assert_array_equal(numbers([1.0]).unseen_counts(np.array([[1, 2, 3, 4, 5, 6]])), [0])


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False), max_size=60), st.lists(st.floats(allow_nan=False), max_size=30))
def test_every_finite_number_is_in_one_cell_whatever_the_reference(reference, current):
    bins = numbers(reference)
    found = counted(bins, current)
    assert len(found) == len(bins.cells)
    assert sum(found.values()) == sum(np.isfinite(v) for v in current)
    assert list(bins.edges) == sorted(set(bins.edges))


QUANTILES = (np.arange(20_000) + 0.5) / 20_000


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.35), (0.4, 1.0), (0.4, 1.35)])
def test_the_parted_tails_see_what_equal_bins_miss(mean, deviation):
    # The chances of the moved normal between the quantiles of a standard one, with and without the tails.
    moved = norm(mean, deviation)
    inner = norm.ppf(np.arange(0.1, 0.95, 0.1))
    parted = np.diff([0.0, *moved.cdf([norm.ppf(0.025), *inner, norm.ppf(0.975)]), 1.0])
    expected = psi([25, 75, *[100] * 8, 75, 25], parted * 1e6)
    bins = numbers(norm.ppf(QUANTILES).tolist())
    was, now = (list(counted(bins, d.ppf(QUANTILES).tolist()).values()) for d in (norm, moved))
    assert psi(was, now) == pytest.approx(expected, abs=0.002)
    assert expected > psi([100] * 10, np.diff([0.0, *moved.cdf(inner), 1.0]) * 1e6)
    # No bins see more than the densities show: the symmetric Kullback-Leibler divergence of two normals.
    assert expected < ((deviation**2 + mean**2) + (1 + mean**2) / deviation**2) / 2 - 1


def test_categories_beyond_the_most_frequent_are_others_most_frequent_first():
    names = [f"k{i:02d}" for i in range(TOP_CATEGORIES + 2)]
    values = pl.Series([n for i, n in enumerate(names) for _ in range(30 - i)])
    bins = bins_of(values.shuffle(seed=1), "c", "categorical", 10)
    assert bins.categories == tuple(names[:TOP_CATEGORIES])
    assert bins.others == tuple(names[TOP_CATEGORIES:])
