"""How good the live model is, for people: each metric with its interval, each slice, and what is only estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from validation.estimate import EstimateCheck, PerformanceEstimate
from validation.metrics import METRICS, Interval
from validation.performance import PerformanceVerdict
from validation.slices import SliceVerdict
from validation.verdict import Status

STATES = {Status.FAIL: "worse", Status.PASS: "as expected"}
MOST_SLICES = 30


def performance_markdown(
    performance: PerformanceVerdict,
    estimate: PerformanceEstimate | None = None,
    check: EstimateCheck | None = None,
    *,
    most: int = MOST_SLICES,
) -> str:
    """What was measured, what is estimated, how the estimate did, and the slices, worst first, in Markdown.

    Args:
        performance: measured where labels have come.
        estimate: of the predictions that wait for theirs; None = there was none to make.
        check: the estimate beside the truth; None as well.
        most: how many slices the table shows.
    """
    lines = [f"**Measured: {performance.verdict.status.name}.** {_plain(performance.verdict.reason)}.", ""]
    head = ["metric", "measured", "95 % interval"]
    rows = [[METRICS[m], _number(performance.intervals[m].value), _ends(performance.intervals[m])] for m in METRICS]
    if estimate:
        head += ["estimated, no labels yet", "95 % interval of the estimate"]
        for row, metric in zip(rows, METRICS, strict=True):
            row += [_number(estimate.intervals[metric].value), _ends(estimate.intervals[metric])]
    lines += [*_table(head, rows), ""]
    if estimate:
        lines += [f"**Estimated: {estimate.verdict.status.name}.** {_plain(estimate.verdict.reason)}.", ""]
    if check:
        lines += [f"**Estimate and truth: {check.verdict.status.name}.** {_plain(check.verdict.reason)}.", ""]
    if check and check.metrics:
        head = ["metric, labels known", "estimated", "where the truth was expected", "measured", "difference", "state"]
        rows = [
            [
                METRICS[c.metric],
                _number(c.estimated.value),
                _ends(c.estimated),
                _number(c.measured),
                f"{c.difference:+.3f}",
                "within" if c.covered else "missed",
            ]
            for c in check.metrics
        ]
        lines += [*_table(head, rows), ""]
    if performance.slices:
        lines += _slices(performance.slices, most)
    return "\n".join(lines).rstrip() + "\n"


def _slices(slices: Sequence[SliceVerdict], most: int) -> list[str]:
    """A row a slice: those that FAIL first, then by how far they are below what was expected."""
    ordered = sorted(slices, key=_worst_first)
    # Short, and the state early: Prefect's pages are 800 pixels wide, and cut what is wider.
    head = ["slice", "state", "rows", "positive", "AUC", "95 % interval", "expected"]
    rows = [
        [
            _plain(f"{s.feature}: {s.name}"),
            STATES.get(s.status, "not known"),
            str(s.rows),
            f"{s.positive_rate.value:.1%}" if s.rows else "-",
            _number(s.auc.value),
            _ends(s.auc),
            _number(s.expected_auc),
        ]
        for s in ordered[:most]
    ]
    lines = _table(head, rows)
    if len(ordered) > most:
        lines += ["", f"{len(ordered) - most} more slices are not shown."]
    return lines


def _worst_first(found: SliceVerdict) -> tuple[int, float, str, str]:
    below = found.expected_auc - found.auc.value
    return (-found.status, -below if math.isfinite(below) else math.inf, found.feature, found.name)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _ends(of: Interval) -> str:
    return f"{of.low:.3f} to {of.high:.3f}" if math.isfinite(of.low) and math.isfinite(of.high) else "-"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names of slices come from outside and may hold anything."""
    return " ".join("".join(f"\\{c}" if c in r"\`*_[]<>|" else c for c in text).split())
