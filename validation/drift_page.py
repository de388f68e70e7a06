"""The page a person opens from an alert: what moved, how much, and a picture of each column that did."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from validation.bars import BinShares, alternative, bin_shares
from validation.drift import DriftVerdict, FeatureDrift
from validation.plots import draw_drift, headline
from validation.profile import SCORE
from validation.report import HEADLINES, drift_table
from validation.verdict import Status

LOG = logging.getLogger(__name__)
PAGE_FILE, EVIDENTLY_FILE = "drift.html", "evidently.html"
MAX_PLOTS, MAX_TABLE_ROWS = 20, 100

COLOURS = {
    Status.PASS: "#0b7a4b",
    Status.INCONCLUSIVE: "#7a5b00",
    Status.ERROR: "#8a3ffc",
    Status.FAIL: "#b3261e",
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; border-left: .5rem solid var(--status); padding-left: .7rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.reason { font-size: 1.1rem; }
.quiet { color: #555; }
.note { background: #f3f3f3; padding: .6rem .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.drifted td:first-child { font-weight: 700; color: #b3261e; }
tr.watched td:first-child { font-weight: 700; }
tr:has(+ tr.why) td { border-bottom: 0; padding-bottom: 0; }
tr.why td { color: #555; font-size: .875rem; padding-bottom: .5rem; }
figure { margin: 0 0 1rem; }
img { max-width: 100%; height: auto; }
details summary { cursor: pointer; color: #555; }
"""
NUMBERS = frozenset({"PSI", "missing before", "missing now", "before", "now", "adds to PSI"})


@dataclass(frozen=True)
class PageFacts:
    """What a page says beside the verdict.

    Attributes:
        pipeline: whose data it is.
        model: the champion's version.
        as_of: end of the current window, UTC.
        evidently: whether Evidently's page lies beside this one.
        notes: sentences on what is missing, if anything.
    """

    pipeline: str
    model: str
    as_of: datetime
    evidently: bool
    notes: tuple[str, ...] = ()


def plotted(drift: DriftVerdict) -> tuple[FeatureDrift, ...]:
    """The columns that are drawn: the worst that drifted or are watched, and always the score."""
    moved = [f for f in drift.features if f.status is Status.FAIL or f.watched]
    score = [f for f in drift.features if f.feature == SCORE and f not in moved[:MAX_PLOTS]]
    return (*moved[: MAX_PLOTS - len(score)], *score)


def drift_page(drift: DriftVerdict, facts: PageFacts) -> str:
    """One HTML page that needs nothing beside it.

    Args:
        drift: what drift detection found.
        facts: what else the page says.
    """
    status = drift.verdict.status
    title = f"{HEADLINES[status]}: {facts.pipeline}"
    moved = len(drift.drifted) + len(drift.watched)
    drawn = plotted(drift)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">Up to {facts.as_of:%Y-%m-%d %H:%M} UTC, against the reference of champion version '
        f"{escape(facts.model)}. Drift: {status.name}.</p>",
        f'<p class="reason">{escape(drift.verdict.reason)}.</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in facts.notes),
    ]
    if facts.evidently:
        parts.append(
            f'<p>The same columns drawn by Evidently from a sample of rows: <a href="{EVIDENTLY_FILE}">{EVIDENTLY_FILE}'
            "</a>, beside this page. Its drift scores are its own and differ from these.</p>"
        )
    parts.append("<h2>Columns, worst first</h2>" + _table_of(drift))
    undrawn = moved - sum(f.status is Status.FAIL or f.watched for f in drawn)
    if undrawn > 0:
        parts.append(f'<p class="quiet">The worst {len(drawn)} are drawn; {undrawn} more moved.</p>')
    for found in drawn:
        if found.compared is None:
            continue
        shares = bin_shares(found.compared)
        parts.append(
            f"<h2>{escape(found.feature)}</h2><p>{escape(found.reason)}.</p><figure>{_picture(found, shares)}"
            "<details><summary>The numbers</summary>"
            f"{_table(('bin', 'before', 'now', 'adds to PSI'), alternative(shares))}</details></figure>"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root {{ --status: {COLOURS[status]}; }}{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _picture(found: FeatureDrift, shares: BinShares) -> str:
    """One column drawn; in its place why it is not, since the page tells what moved without pictures, too."""
    try:
        picture = base64.b64encode(draw_drift(found, shares)).decode()
    except Exception as error:  # whatever a drawing library raises
        LOG.warning("%r could not be drawn", found.feature, exc_info=True)
        why = f"{type(error).__name__}: {str(error)[:200]}".rstrip(". ")
        return f'<p class="note">The picture is not here: drawing it ended in {escape(why)}.</p>'
    return f'<img src="data:image/png;base64,{picture}" alt="{escape(headline(found))}; the numbers are below">'


def _table_of(drift: DriftVerdict) -> str:
    rows = drift_table(drift)[:MAX_TABLE_ROWS]
    if not rows:
        return "<p>There are none.</p>"
    more = len(drift.features) - len(rows)
    states = [row["state"] for row in rows]
    # Below its row, across the table: a column of sentences would leave no room for the numbers.
    whys = [row.pop("why") for row in rows]
    told = _table(tuple(rows[0]), [tuple(row.values()) for row in rows], states, whys)
    return told + (f'<p class="quiet">{more} more columns moved less.</p>' if more else "")


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = (), below: Sequence[str] = ()
) -> str:
    kinds = ['class="number"' if name in NUMBERS else "" for name in head]
    lines = ["<tr>" + "".join(f"<th {k}>{escape(n)}</th>" for k, n in zip(kinds, head, strict=True)) + "</tr>"]
    for i, row in enumerate(rows):
        cells = "".join(f"<td {k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
        lines.append(f'<tr class="{escape(classes[i]) if classes else ""}">{cells}</tr>')
        if below:
            lines.append(f'<tr class="why"><td colspan="{len(head)}">{escape(below[i])}</td></tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
