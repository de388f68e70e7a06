"""A sentence and a picture speak of the same bins with the same numbers; a middle is told as far as bins know it."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines.spec import DriftPolicy, Feature
from validation.bars import Compared, alternative, bin_shares, medians_told
from validation.bins import TOP_CATEGORIES, bins_of
from validation.drift import FeatureDrift, detect_drift
from validation.profile import build_reference, profile, profile_by_hour
from validation.windows import Window, windows_before

MONDAY = datetime(2013, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)
SHOP = (Feature(name="c", kind="categorical"),)
POLICY = DriftPolicy(persistence=1, seasonal=True, min_rows=100)


def judged(before: list[str | None], now: list[str | None]) -> FeatureDrift:
    """One column of categories, whose rows have no time."""
    reference = build_reference(pl.DataFrame({"c": before}), SHOP, POLICY, extra=())
    current = profile(pl.DataFrame({"c": pl.Series(now, dtype=pl.String)}), reference)
    (found,) = detect_drift(reference, [Window.of_rows(current)], POLICY).features
    return found


def marked(found: FeatureDrift) -> list[str]:
    """The bins that the picture marks."""
    assert found.compared
    shares = bin_shares(found.compared)
    return [shares.labels[position] for position in shares.named]


def named(found: FeatureDrift) -> list[str]:
    """The bins that the sentence names."""
    told = {"most by ([^:]*):": None, "rows without a value": "missing", "a category never seen": "never seen"}
    return [
        match[1] if name is None else name for what, name in told.items() if (match := re.search(what, found.reason))
    ]


RARE = [f"rare {n % 300}" for n in range(600)]
KNOWN = [f"top {n % TOP_CATEGORIES}" for n in range(6_000)]


@pytest.mark.parametrize(
    ("before", "now", "bins"),
    [
        (["a", "b"] * 500, ["a", "b", "b", "b"] * 250, ["a"]),
        (["a", "b"] * 500, ["a", "b", "b", None] * 250, ["missing"]),
        (["a", "b"] * 500, ["a", "b", "new", "b"] * 250, ["never seen"]),
        (["a", "b"] * 500, ["b", "new", None, None, "b", "b", "b"] * 200, ["a", "missing", "never seen"]),
        (["a", "b"] * 500, [None] * 500, ["missing"]),
        # The rest, of which none has a bin of its own.
        (KNOWN + RARE, KNOWN[:2_000] + RARE * 5, ["other"]),
        (["a", "b"] * 500, ["a", "b"] * 400, []),
    ],
)
def test_the_picture_marks_the_bins_that_the_sentence_names(
    before: list[str | None], now: list[str | None], bins: list[str]
) -> None:
    found = judged(before, now)
    assert marked(found) == bins
    assert named(found) == (bins if found.psi == found.psi and "entirely missing" not in found.reason else [])


def test_where_the_season_counts_the_picture_shows_the_weekdays_that_were_compared() -> None:
    # Working days are half a and half b, weekends all c. Then Monday to Wednesday are a quarter a.
    def days(since: datetime, count: int, working: list[str]) -> pl.DataFrame:
        rows = [
            (since + n * DAY + timedelta(minutes=18 * k), "c" if (since + n * DAY).weekday() > 4 else working[k % 4])
            for n in range(count)
            for k in range(80)
        ]
        return pl.DataFrame(rows, schema={"t": pl.Datetime("us", "UTC"), "c": pl.String}, orient="row")

    reference = build_reference(
        days(MONDAY - 56 * DAY, 56, ["a", "b", "a", "b"]), SHOP, POLICY, extra=(), timestamp_column="t"
    )
    current = profile_by_hour(days(MONDAY, 3, ["a", "b", "b", "b"]), reference, "t")
    (found,) = detect_drift(reference, windows_before(current, reference, MONDAY + 3 * DAY, POLICY), POLICY).features
    # (1/4 - 1/2) ln(1/2) of it is a's, which is more than b's.
    assert found.psi == pytest.approx(math.log(3) / 4)
    assert "most by a: 50.0% -> 25.0% of values" in found.reason
    assert marked(found) == ["a"]
    assert found.compared
    shown = bin_shares(found.compared)
    assert alternative(shown)[:2] == [
        ("b", "50.0%", "75.0%", "0.101"),
        ("a", "50.0%", "25.0%", "0.173"),
    ] or alternative(shown)[:2] == [("a", "50.0%", "25.0%", "0.173"), ("b", "50.0%", "75.0%", "0.101")]
    assert shown.contribution.sum() == pytest.approx(found.psi)


def medians(before: list[float], now: list[float]) -> str:
    frame = pl.DataFrame({"x": pl.Series(before, dtype=pl.Float64)})
    bins = bins_of(frame["x"], "x", "numeric", 10)
    sides = [
        np.bincount(bins.assign(pl.DataFrame({"x": pl.Series(v, dtype=pl.Float64)})), minlength=len(bins.labels))
        for v in (before, now)
    ]
    return medians_told(Compared(bins, sides[0].astype(float), sides[1].astype(float), ()))


def test_medians_are_those_of_the_values_as_far_as_the_bins_tell() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.gamma(2, 10, 5_000), rng.gamma(2, 14, 5_000)
    found = re.fullmatch(r"median about ([\d.]+) -> ([\d.]+)", medians(before.tolist(), now.tolist()))
    assert found
    assert float(found[1]) == pytest.approx(np.median(before), rel=0.01)
    assert float(found[2]) == pytest.approx(np.median(now), rel=0.04)


# The outermost bins end at 25 and begin at 975.
EVEN = [float(n) for n in range(1, 1_001)]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        # An outermost bin reaches to the most extreme value; where in it half of them are, it does not know.
        (EVEN, [990.0] * 9, "median about 500 -> above 975"),
        (EVEN, [5_000.0] * 9, "median about 500 -> above 1,000"),
        (EVEN, [2.0] * 9, "median about 500 -> below 25"),
        (EVEN, [-7.0] * 9, "median about 500 -> below 1"),
        # Most were 0, which is a bin by itself, and so is 60.
        ([0.0] * 700 + [60.0] * 300, [60.0] * 10, "median about 0 -> 60"),
        ([60.0] * 700 + [0.0] * 300, [0.0] * 10, "median about 60 -> 0"),
        # Whole numbers stay whole: in the bin between 2 and 6 there can be 3, 4 and 5.
        ([1.0] * 50 + [2.0] * 500 + [3.0] * 50 + [6.0] * 350 + [7.0] * 50, [3.0, 4.0, 5.0] * 30, "median about 2 -> 4"),
        # Both have the digits of the larger one.
        ([0.0123] * 700 + [2.0] * 300, [2.0] * 9, "median about 0.01 -> 2"),
        ([-0.0001] * 700 + [2.0] * 300, [2.0] * 9, "median about 0 -> 2"),
        ([1e-5] * 700 + [2e-5] * 300, [2e-5] * 9, "median about 0.00001 -> 0.00002"),
        # The middle stays, whatever the ends do.
        (EVEN, [1.0, 1_000.0] * 100 + EVEN, ""),
        (EVEN, [math.nan] * 9, ""),
        ([math.nan] * 9, EVEN, ""),
        ([], EVEN, ""),
    ],
)
def test_a_median_is_told_no_finer_than_the_bins_know_it(before: list[float], now: list[float], told: str) -> None:
    assert medians(before, now) == told


def test_categories_have_no_median() -> None:
    found = judged(["1", "2"] * 500, ["1", "2", "2", "2"] * 250)
    assert "median" not in found.reason
