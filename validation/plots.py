"""How one column moved, as a picture: the share of rows in each bin before and now, and what each bin adds to the PSI.

The only module that touches matplotlib. It draws on figures of its own and never through `pyplot`, whose state is shared
by all threads of a process.
"""

from __future__ import annotations

import io
import math

import numpy as np

from validation.bars import BinShares
from validation.drift import FeatureDrift

# Two of Okabe and Ito's colours (2008), which look different with any colour vision, and in grey.
REFERENCE_COLOUR, CURRENT_COLOUR = "#0072B2", "#E69F00"
CONTRIBUTION_COLOUR, MOST_COLOUR = "#999999", "#D55E00"
INCHES, DOTS_PER_INCH = (9.0, 5.0), 120
LONGEST_LABEL, LONGEST_TITLE = 22, 60


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
    above.set_ylabel("share of all rows")
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    above.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    figure.suptitle(_drawable(headline(drift)), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)

    added = np.nan_to_num(shares.contribution)
    colours = [CONTRIBUTION_COLOUR] * len(at)
    for position in shares.named:
        colours[position] = MOST_COLOUR
    if not added.any():
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
    # By its name, too: what is missing or never seen adds nothing to the PSI, and has no bar there.
    for position in shares.named:
        below.get_xticklabels()[position].set(color=MOST_COLOUR, fontweight="bold")
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


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _drawable(text: str) -> str:
    """The text with a box for what the font lacks, or each such letter of a category would be a warning in the log."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in letters else "\N{WHITE SQUARE}" for c in text)
