"""How one column moved, as a picture: the share of rows in each bin before and now, and what each bin adds to the PSI.

The only module that touches matplotlib. It draws on figures of its own and never through `pyplot`, whose state is shared
by all threads of a process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validation.bins import FeatureBins, FeatureCounts
from validation.drift import FeatureDrift
from validation.psi import psi_by_bin

# Two of Okabe and Ito's colours (2008), which look different with any colour vision, and in grey.
REFERENCE_COLOUR, CURRENT_COLOUR = "#0072B2", "#E69F00"
CONTRIBUTION_COLOUR, MOST_COLOUR = "#999999", "#D55E00"
INCHES, DOTS_PER_INCH = (9.0, 5.0), 120
LONGEST_LABEL, LONGEST_TITLE = 22, 60
MISSING, UNSEEN = "missing", "never seen"


@dataclass(frozen=True)
class BinShares:
    """One column's bins as they are shown; bins that neither side uses are left out, `missing` never is.

    Attributes:
        labels: names of the bins, for people; perhaps not unique.
        reference: share of the reference's rows in each bin, 0 to 1, shape (bins,); NaN without rows.
        current: the same of the current window.
        contribution: what each bin adds to the PSI; NaN where a side has no rows.
    """

    labels: tuple[str, ...]
    reference: NDArray[np.float64]
    current: NDArray[np.float64]
    contribution: NDArray[np.float64]


def bin_shares(bins: FeatureBins, reference: FeatureCounts, current: FeatureCounts) -> BinShares:
    """What is drawn of one column.

    Args:
        bins: the column's frozen bins.
        reference: its counts in the reference.
        current: its counts in the current window, on the same bins.
    """
    sides = [np.append(c.present, (c.missing, c.absent, c.unreadable)) for c in (reference, current)]
    cells = [bins.cell_counts(side) for side in sides]
    # Rows that PSI leaves out are shown all the same: their share is judged by itself.
    apart = [[bins.unseen_counts(side), bins.void_counts(side)] for side in sides]
    was, now = (np.append(c, some) for c, some in zip(cells, apart, strict=True))
    names = (*(_shown(name) for name in bins.cells), UNSEEN, MISSING)
    used = (was > 0) | (now > 0)
    used[-1] = True
    with np.errstate(invalid="ignore"):
        shares = was / np.float64(was.sum()), now / np.float64(now.sum())
    return BinShares(
        tuple(name for name, shown in zip(names, used, strict=True) if shown),
        shares[0][used],
        shares[1][used],
        np.append(psi_by_bin(*cells), (0.0, 0.0))[used],
    )


def draw_drift(drift: FeatureDrift, shares: BinShares) -> bytes:
    """The picture of one column, as PNG.

    Args:
        drift: what was found of the column.
        shares: its bins.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    at, width = np.arange(len(shares.labels)), 0.4
    above.bar(at - width / 2, np.nan_to_num(shares.reference), width, color=REFERENCE_COLOUR, label="reference")
    above.bar(at + width / 2, np.nan_to_num(shares.current), width, color=CURRENT_COLOUR, label="current window")
    above.set_ylabel("share of rows")
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    above.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    figure.suptitle(_drawable(headline(drift)), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)

    added = np.nan_to_num(shares.contribution)
    colours = [CONTRIBUTION_COLOUR] * len(at)
    if added.any():
        colours[int(np.argmax(added))] = MOST_COLOUR
    else:
        below.text(0.5, 0.5, "no bin adds anything", ha="center", va="center", transform=below.transAxes)
    below.bar(at, added, 2 * width, color=colours)
    below.set_ylabel("adds to PSI")
    long = len(at) > 8 or max(map(len, shares.labels)) > 10
    below.set_xticks(
        at,
        [_drawable(_cut(label, LONGEST_LABEL)) for label in shares.labels],
        rotation=40 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor" if long else "default",
        parse_math=False,
    )
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def headline(drift: FeatureDrift) -> str:
    """The column, how far it moved, and how much of it was and is missing."""
    moved = f"PSI {drift.psi:.3f}" if math.isfinite(drift.psi) else "PSI not known"
    was, now = (
        f"{rate:.1%}" if math.isfinite(rate) else "?"
        for rate in (drift.missing_rate_reference, drift.missing_rate_current)
    )
    return f"{_cut(drift.feature, LONGEST_TITLE)}: {moved}, missing {was} before, {now} now"


def _shown(label: str) -> str:
    """A bin's name on one line, without the mark that keeps a category apart from the other bins."""
    told = label.replace(f"[{np.finfo(np.float64).tiny:.4g}, ", "(0, ")  # the first float above the bin of zero
    return " ".join(told.removeprefix("=").split()) or "(blank)"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _drawable(text: str) -> str:
    """The text with a box for what the font lacks, or each such letter of a category would be a warning in the log."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in letters else "\N{WHITE SQUARE}" for c in text)


def alternative(shares: BinShares) -> Sequence[tuple[str, str, str, str]]:
    """The picture in words, for those who do not see it: bin, share before, share now, what it adds to the PSI."""
    columns = zip(shares.labels, shares.reference, shares.current, shares.contribution, strict=True)
    return [(name, _told(was, ".1%"), _told(now, ".1%"), _told(added, ".3f")) for name, was, now, added in columns]


def _told(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
