"""Does the data reach over the window it is meant to stand for."""

from __future__ import annotations

import numpy as np

from validation.hours import DAY_H, HourlyProfiles, moment_of
from validation.verdict import Status, Verdict

LEAST_SHARE = 0.9


def judge_coverage(current: HourlyProfiles, reference: HourlyProfiles | None, since: int, until: int) -> Verdict:
    """Judge whether the hours of a window that should have rows do.

    A window that has only seen its Monday differs from any reference by its weekdays alone; that says nothing of the
    world. And a stream that ended on Monday says nothing of today, however many rows it left behind. Which hours should
    have rows the reference tells: those of the day in which nine of ten of its days with rows have some, so that a night
    without flights is no gap, on the weekdays that mostly have rows, so that an office's Sunday is none. If there is no
    such hour, every such day of the window should have a row.

    Args:
        current: hours that have rows.
        reference: the same of the reference; None when it does not know.
        since: the window's first hour, hours since 1970.
        until: the hour after its last.

    Returns:
        PASS when nine tenths of them have, otherwise INCONCLUSIVE.
    """
    hours = current.hours[(current.hours >= since) & (current.hours < until)]
    told = f"from {moment_of(since):%Y-%m-%d %H:%M} to {moment_of(until):%Y-%m-%d %H:%M} UTC"
    if not hours.size:
        return Verdict(Status.INCONCLUSIVE, f"the window {told} has no rows", {"covered_share": 0.0})
    window = np.arange(since, until)
    working = window[~np.isin(_weekday(window // DAY_H), _idle_weekdays(reference))]
    if not working.size:
        reason = f"in the window {told} no rows are due: the reference has none on such weekdays"
        return Verdict(Status.INCONCLUSIVE, reason, {"covered_share": 0.0})
    due = working[np.isin(working % DAY_H, _busy_hours(reference))]
    unit, have = "hours", np.isin(due, hours)
    if not due.size:
        due = np.unique(working // DAY_H)
        unit, have = "days", np.isin(due, hours // DAY_H)
    share = float(have.mean())
    reason = f"{int(have.sum())} of the {due.size} {unit} that should have rows do in the window {told}"
    if share < LEAST_SHARE:
        reason += f"; its newest row is of the hour {moment_of(int(hours[-1])):%Y-%m-%d %H:%M}"
    status = Status.PASS if share >= LEAST_SHARE else Status.INCONCLUSIVE
    return Verdict(status, reason, {"covered_share": share})


def _weekday(days: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """0 = Monday, of days since 1970, which began on a Thursday."""
    return (days + 3) % 7


def _idle_weekdays(reference: HourlyProfiles | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Weekdays that have no rows in most of the reference's weeks."""
    if reference is None or not reference.hours.size:
        return np.zeros(0, dtype=np.int64)
    days = np.unique(reference.hours // DAY_H)
    possible = np.bincount(_weekday(np.arange(days[0], days[-1] + 1)), minlength=7)
    used = np.bincount(_weekday(days), minlength=7)
    return np.flatnonzero(used < possible / 2)


def _busy_hours(reference: HourlyProfiles | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Hours of the day in which nearly all of the reference's days have rows."""
    if reference is None or not reference.hours.size:
        return np.zeros(0, dtype=np.int64)
    days = np.unique(reference.hours // DAY_H).size
    hours, times = np.unique(reference.hours % DAY_H, return_counts=True)
    return np.asarray(hours[times >= LEAST_SHARE * days], dtype=np.int64)
