"""What is drawn of a column is what was counted, worked out by hand, and any name can be drawn."""

from __future__ import annotations

import io
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from moved_world import EVIL, world

from validation.bars import BinShares, Compared, alternative, bin_shares
from validation.bins import FeatureBins
from validation.drift import FeatureDrift
from validation.plots import CURRENT_COLOUR, MOST_COLOUR, REFERENCE_COLOUR, draw_drift, headline
from validation.psi import psi_by_bin
from validation.verdict import Status

BINS = FeatureBins("shop", "categorical", categories=("a", "b", " "))


def counts(present: list[int], missing: int) -> np.ndarray:
    return np.array([*present, missing, 0, 0], dtype=np.float64)


def shares_of(bins: FeatureBins, was: np.ndarray, now: np.ndarray) -> BinShares:
    terms = psi_by_bin(bins.cell_counts(was), bins.cell_counts(now))
    return bin_shares(Compared(bins, was, now, tuple(terms.tolist())))


def drifted(name: str, psi: float = 0.3, before: float = 0.0, now: float = 0.0) -> FeatureDrift:
    return FeatureDrift(name, psi, before, now, Status.FAIL, "moved")


def test_shares_and_what_each_bin_adds_are_those_worked_out_by_hand() -> None:
    # Bins: a, b, blank, other, unseen; then missing. Nobody was in other or unseen.
    found = shares_of(BINS, counts([50, 30, 10, 0, 0], 10), counts([25, 30, 10, 0, 0], 35))
    assert found.labels == ("a", "b", "(blank)", "missing")
    assert found.reference.tolist() == [0.5, 0.3, 0.1, 0.1]
    assert found.current.tolist() == [0.25, 0.3, 0.1, 0.35]
    # Of values: 5/9, 3/9, 1/9 before and 5/13, 6/13, 2/13 now. Rows without a value are judged by themselves.
    by_hand = [
        (5 / 13 - 5 / 9) * math.log(9 / 13),
        *((q - p) * math.log(q / p) for p, q in ((3 / 9, 6 / 13), (1 / 9, 2 / 13))),
        0,
    ]
    assert found.contribution == pytest.approx(by_hand)
    assert alternative(found)[3] == ("missing", "10.0%", "35.0%", "0.000")


def test_a_category_never_seen_has_a_bar_of_its_own_and_adds_nothing_to_the_psi() -> None:
    found = shares_of(BINS, counts([50, 50, 0, 0, 0], 0), counts([25, 25, 0, 0, 50], 0))
    assert found.labels == ("a", "b", "never seen", "missing")
    assert found.current.tolist() == [0.25, 0.25, 0.5, 0.0]
    assert found.contribution.tolist() == [0, 0, 0, 0]


def test_missing_is_shown_though_nothing_is_and_a_side_without_rows_is_not_known() -> None:
    found = shares_of(BINS, counts([5, 5, 0, 0, 0], 0), counts([0, 0, 0, 0, 0], 0))
    assert found.labels == ("a", "b", "missing")
    assert np.isnan(found.current).all()
    assert alternative(found)[0] == ("a", "50.0%", "-", "-")
    assert draw_drift(drifted("shop", math.nan, 0.0, math.nan), found).startswith(b"\x89PNG")
    assert headline(drifted("shop", math.nan, 0.0, math.nan)) == "shop: PSI not known, missing 0.0% before, ? now"


def test_the_bin_right_above_zero_has_a_name_for_people() -> None:
    bins = FeatureBins("wait", "numeric", edges=(0.0, float(np.finfo(np.float64).tiny), 4.0))
    found = shares_of(bins, counts([5, 5, 0, 0], 0), counts([5, 5, 0, 0], 0))
    assert found.labels == ("0", "(0, 4]", "missing")


@pytest.mark.parametrize("name", [EVIL, "$\\frac{", "日本航空", "\x07", "a" * 400, "two\nlines", "%s {0}", "עברית"])
def test_any_name_can_be_drawn_and_none_is_a_warning(name: str) -> None:
    bins = FeatureBins(name, "categorical", categories=(name,))
    shares = shares_of(bins, counts([9, 0, 0], 1), counts([5, 0, 4], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_drift(drifted(name), shares).startswith(b"\x89PNG")


def colours_of(picture: bytes) -> dict[str, int]:
    """How many dots of a picture have each of the two colours of bars."""
    from matplotlib.image import imread  # the tests' own reading, not the module's

    dots = (imread(io.BytesIO(picture))[:, :, :3] * 255).round().astype(int)
    return {
        colour: int((dots == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum())
        for colour in (REFERENCE_COLOUR, CURRENT_COLOUR, MOST_COLOUR)
    }


def test_a_bar_is_as_high_as_its_share() -> None:
    shares = BinShares(("a", "missing"), np.array([0.5, 0.0]), np.array([1.0, 0.0]), np.array([0.1, 0.0]))
    nobody = BinShares(("a", "missing"), np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([0.1, 0.0]))
    found, legend = colours_of(draw_drift(drifted("x"), shares)), colours_of(draw_drift(drifted("x"), nobody))
    key = legend[REFERENCE_COLOUR]  # the legend's patches are as large as each other
    bars = {colour: found[colour] - key for colour in (REFERENCE_COLOUR, CURRENT_COLOUR)}
    assert bars[CURRENT_COLOUR] / bars[REFERENCE_COLOUR] == pytest.approx(2, rel=0.05)


def test_what_the_sentence_names_is_marked_even_where_it_has_no_bar_and_nothing_else_is() -> None:
    halves, added = np.array([0.5, 0.5]), np.array([0.1, 0.0])
    shares = [BinShares(("a", "missing"), halves, halves, added, named) for named in ((), (0,), (1,))]
    nothing, bar, name = (colours_of(draw_drift(drifted("x"), one))[MOST_COLOUR] for one in shares)
    assert nothing == 0
    assert bar > 10 * name > 0


def test_pictures_drawn_at_once_are_those_drawn_one_by_one() -> None:
    it = world()

    def draw(found: FeatureDrift) -> bytes:
        assert found.compared
        return draw_drift(found, bin_shares(found.compared))

    one_by_one = [draw(f) for f in it.drift.features]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, it.drift.features)) == one_by_one
    assert len(set(one_by_one)) == len(one_by_one)
