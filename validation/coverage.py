"""Does the data reach over the window it is meant to stand for."""

from __future__ import annotations

from datetime import datetime

import polars as pl

from validation.verdict import Status, Verdict

LEAST_SHARE = 0.9
DAY_S = 86_400.0


def judge_coverage(times: pl.Series, since: datetime, until: datetime) -> Verdict:
    """Judge whether rows reach over (nearly) the whole window: back to its begin, and on to its end.

    A week that has only seen its Monday differs from any reference by its weekdays alone; that says nothing of the world.
    And a stream that ended on Monday says nothing of today, however many rows it left behind.

    A tenth may lack at either end: 16.8 h of a week, more than any night without events. Of two days it is 4.8 h, less
    than the six hours in which no flight is scheduled (04:00 to 10:00 UTC), so a short window ends best by midnight UTC.

    Args:
        times: event times of the rows, UTC.
        since: begin of the window.
        until: its end.

    Returns:
        PASS when the earliest row lies within the window's first tenth and the latest within its last, otherwise
        INCONCLUSIVE.
    """
    whole_s = (until - since).total_seconds()
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return Verdict(Status.INCONCLUSIVE, f"the window of {whole_s / DAY_S:.1f} d has no rows", {"covered_s": 0.0})
    covered_s, silent_s = (until - first).total_seconds(), (until - last).total_seconds()
    measured = {"covered_s": covered_s, "silent_s": silent_s, "window_s": whole_s}
    if covered_s < LEAST_SHARE * whole_s:
        reason = f"rows reach back {covered_s / DAY_S:.1f} d of the window's {whole_s / DAY_S:.1f} d"
        return Verdict(Status.INCONCLUSIVE, reason, measured)
    if whole_s - silent_s < LEAST_SHARE * whole_s:
        reason = f"the newest row is {silent_s / DAY_S:.1f} d old, in a window of {whole_s / DAY_S:.1f} d"
        return Verdict(Status.INCONCLUSIVE, reason, measured)
    return Verdict(Status.PASS, f"rows reach over {covered_s / DAY_S:.1f} d", measured)
