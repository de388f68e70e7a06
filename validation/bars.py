"""A column's bins as people see them: one name and one share each, in sentences and in pictures alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validation.bins import FeatureBins

Floats = NDArray[np.float64]
MISSING, UNSEEN = "missing", "never seen"
MOST_DIGITS = 9


@dataclass(frozen=True, eq=False)
class Compared:
    """A column as it was compared in the newest window: what a sentence says of it is what a picture shows.

    Attributes:
        bins: its frozen bins.
        reference: rows of the reference by label, with weekdays mixed as in the window where the season counts.
        current: rows of the window by label, of the weekdays that the reference knows.
        terms: what each of the bins' cells adds to the PSI; NaN where a side has no values.
        named: positions in `bar_names` of the bins that the column's sentence names; none where it has not moved.
    """

    bins: FeatureBins
    reference: Floats
    current: Floats
    terms: tuple[float, ...]
    named: tuple[int, ...] = ()


@dataclass(frozen=True)
class BinShares:
    """One column's bins as they are shown; bins that neither side uses are left out, `missing` never is.

    Attributes:
        labels: names of the bins, for people; perhaps not unique.
        reference: share of the reference's rows in each bin, 0 to 1, shape (bins,); NaN without rows.
        current: the same of the current window.
        contribution: what each bin adds to the PSI; NaN where a side has no rows.
        named: positions of the bins that the column's sentence names.
    """

    labels: tuple[str, ...]
    reference: Floats
    current: Floats
    contribution: Floats
    named: tuple[int, ...] = ()


def bar_names(bins: FeatureBins) -> tuple[str, ...]:
    """Names of the cells that PSI compares, then of values never seen, then of rows without a value; perhaps not unique."""
    return (*(_shown(name) for name in bins.cells), UNSEEN, MISSING)


def bin_shares(compared: Compared) -> BinShares:
    """What is drawn of one column."""
    bins, sides = compared.bins, (compared.reference, compared.current)
    # Rows that PSI leaves out are shown all the same: their share is judged by itself.
    was, now = (np.append(bins.cell_counts(side), (bins.unseen_counts(side), bins.void_counts(side))) for side in sides)
    used = (was > 0) | (now > 0)
    used[-1] = True
    with np.errstate(invalid="ignore"):
        shares = was / np.float64(was.sum()), now / np.float64(now.sum())
    return BinShares(
        tuple(name for name, shown in zip(bar_names(bins), used, strict=True) if shown),
        shares[0][used],
        shares[1][used],
        np.append(compared.terms, (0.0, 0.0))[used],
        tuple(int(used[:position].sum()) for position in compared.named if used[position]),
    )


def alternative(shares: BinShares) -> Sequence[tuple[str, str, str, str]]:
    """The picture in words, for those who do not see it: bin, share before, share now, what it adds to the PSI."""
    columns = zip(shares.labels, shares.reference, shares.current, shares.contribution, strict=True)
    return [(name, _told(was, ".1%"), _told(now, ".1%"), _told(added, ".3f")) for name, was, now, added in columns]


def medians_told(compared: Compared) -> str:
    """The median before and now, such as `median about 4 -> 11`; empty where there is none, or both are told alike."""
    medians = [_median(compared.bins, side) for side in (compared.reference, compared.current)]
    # As many digits as the larger one needs.
    size = max((abs(m[1]) for m in medians if m), default=0.0)
    digits = min(max(0, 2 - math.floor(math.log10(size))), MOST_DIGITS) if size else 0
    was, now = (f"{m[0]}{_number(m[1], digits)}" if m else "" for m in medians)
    return f"median about {was} -> {now}" if was and now and was != now else ""


def _median(bins: FeatureBins, counts: Floats) -> tuple[str, float] | None:
    """About where half of the values are below, as far as counts in bins can tell it; None where they cannot.

    Within a bin the values are taken as spread evenly, which between two quantiles of the reference is near enough; where
    all edges are whole numbers, so are they. The outermost bins reach to its most extreme values: of a median in there only
    the inner end is known.

    Args:
        bins: of the column.
        counts: rows by label.

    Returns:
        Nothing, `below ` or `above `, and the value.
    """
    if bins.kind != "numeric" or len(bins.edges) < 2:
        return None
    edges, inner = bins.edges, len(bins.edges) - 1
    # From below all edges to above them.
    passed = np.array([counts[inner], *counts[:inner], counts[inner + 1]]).cumsum()
    half = passed[-1] / 2
    if not half:
        return None
    place = int(np.argmax(passed >= half)) - 1
    if 0 <= place < inner and bins.short_labels[place].startswith("="):
        return "", edges[place]
    if place <= 0:
        return "below ", edges[place + 1]
    if place >= inner - 1:
        return "above ", edges[place]
    share = (half - passed[place]) / (passed[place + 1] - passed[place])
    low, high = edges[place], edges[place + 1]
    if not np.allclose(edges, np.round(edges), rtol=0, atol=1e-6):
        return "", low + share * (high - low)
    first = math.ceil(low)  # of [2, 6) there are 2, 3, 4 and 5
    return "", first + max(math.ceil(share * (math.ceil(high) - first) - 1e-9), 1) - 1.0


def _number(value: float, digits: int) -> str:
    told = f"{round(value, digits) + 0.0:,.{digits}f}"  # not -0
    return told.rstrip("0").rstrip(".") if digits else told


def _shown(label: str) -> str:
    """A bin's name on one line, without the mark that keeps a category apart from the other bins."""
    told = label.replace(f"[{np.finfo(np.float64).tiny:.4g}, ", "(0, ")  # the first float above the bin of zero
    return " ".join(told.removeprefix("=").split()) or "(blank)"


def _told(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
