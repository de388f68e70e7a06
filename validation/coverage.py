"""Does the data reach over the window it is meant to stand for."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from validation.verdict import Status, Verdict

LEAST_SHARE = 0.9
DAY_S = 86_400.0


def judge_coverage(times: pl.Series, since: datetime, until: datetime) -> Verdict:
    """Judge whether rows reach back over (nearly) the whole window.

    A week that has only seen its Monday differs from any reference by its weekdays alone; that says nothing of the world.

    Args:
        times: event times of the rows, UTC.
        since: begin of the window.
        until: its end.

    Returns:
        PASS when the earliest row lies within the window's first tenth, otherwise INCONCLUSIVE.
    """
    whole_s = (until - since).total_seconds()
    first = times.min()
    if not isinstance(first, datetime):
        return Verdict(Status.INCONCLUSIVE, f"the window of {whole_s / DAY_S:.1f} d has no rows", {"covered_s": 0.0})
    covered_s = (until - first).total_seconds()
    measured = {"covered_s": covered_s, "window_s": whole_s}
    if covered_s < LEAST_SHARE * whole_s:
        reason = f"rows reach back {covered_s / DAY_S:.1f} d of the window's {whole_s / DAY_S:.1f} d"
        return Verdict(Status.INCONCLUSIVE, reason, measured)
    return Verdict(Status.PASS, f"rows reach over {covered_s / DAY_S:.1f} d", measured)
