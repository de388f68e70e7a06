"""The windows that drift is looked for in: stretches right before a moment, cut into blocks that chance may shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from pipelines.spec import DriftPolicy
from validation.bins import Counts
from validation.coverage import judge_coverage
from validation.hours import DAY_H, HOUR_S, WEEK_H, HourlyProfiles, hour_of
from validation.profile import Profile, ReferenceProfile
from validation.significance import Layout
from validation.verdict import Status, Verdict

LEAST_BLOCKS = 14
"""Blocks of a reference that can be shuffled: two weeks of days. With fewer, rows count as independent."""


@dataclass(frozen=True, eq=False)
class Window:
    """One stretch of time.

    Attributes:
        counts: shape (blocks, bins).
        starts: first hour of each block, hours since 1970; none when the rows have no time.
        block_h: length of each block, in hours.
        coverage: whether its rows reach over all of it.
        reference: fingerprint of the bins it was counted on.
    """

    counts: Counts
    starts: tuple[int, ...]
    block_h: int
    coverage: Verdict
    reference: str

    @staticmethod
    def of_rows(profile: Profile) -> Window:
        """A window of rows without a time."""
        return Window(profile.counts[None], (), 0, Verdict(Status.PASS, "rows without a time"), profile.reference)


def windows_before(
    current: HourlyProfiles, reference: ReferenceProfile, until: datetime, policy: DriftPolicy
) -> tuple[Window, ...]:
    """The policy's windows, the newest first. The newest ends with the last whole hour before `until`.

    Args:
        current: at least the hours of all windows.
        reference: says in which hours there should be rows.
        until: UTC.
        policy: how many windows, and how long.
    """
    end, length = hour_of(until), policy.window_s // HOUR_S
    ends = [end - k * length for k in range(policy.persistence)]
    return tuple(_window(current, reference, last - length, last) for last in ends)


def _window(current: HourlyProfiles, reference: ReferenceProfile, since: int, until: int) -> Window:
    block = min(until - since, DAY_H)
    starts = tuple(range(since, until, block))
    coverage = judge_coverage(current, reference.hours, since, until)
    return Window(current.blocks(starts, block), starts, block, coverage, current.reference)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A reference and windows, cut alike.

    Attributes:
        reference: shape (blocks, bins).
        windows: one array a window, shape (blocks, bins).
        starts: first hour of each block of each window; empty where rows have no time.
        layout: which blocks are alike; one stratum of one block each when rows count as independent.
        why_rows: why rows must count as independent; None where there are blocks to shuffle.
    """

    reference: Counts
    windows: tuple[Counts, ...]
    starts: tuple[tuple[int, ...], ...]
    layout: Layout
    why_rows: str | None


def lay_out(reference: ReferenceProfile, windows: Sequence[Window], seasonal: bool) -> Comparison:
    """Cut the reference into blocks like those of the windows: of equal length, and beginning at the same hour of a day.

    Args:
        reference: whose bins the windows were counted on.
        windows: at least one.
        seasonal: whether blocks of another weekday are another thing.
    """
    blocks, first = np.zeros((0, len(reference.counts)), dtype=np.int64), np.zeros(0, dtype=np.int64)
    if reference.hours is not None and reference.hours.hours.size and all(w.starts for w in windows):
        length = windows[0].block_h
        first = _whole_blocks(reference.hours, windows[0].starts[0], length)
        blocks, first = _with_rows(reference.hours.blocks(first.tolist(), length), first)
    if len(first) < LEAST_BLOCKS:
        alone = tuple(np.zeros(1, dtype=np.int64) for _ in windows)
        totals = tuple(w.counts.sum(axis=0)[None] for w in windows)
        layout, starts = Layout(np.zeros(1, dtype=np.int64), alone), tuple(w.starts[:1] for w in windows)
        return Comparison(np.array(reference.counts)[None], totals, starts, layout, _why_rows(windows, len(first)))
    season = WEEK_H if seasonal else DAY_H
    used = [_with_rows(w.counts, np.array(w.starts)) for w in windows]
    layout = Layout(first % season, tuple(at % season for _, at in used))
    counts, starts = tuple(c for c, _ in used), tuple(tuple(at.tolist()) for _, at in used)
    return Comparison(blocks, counts, starts, layout, None)


def _why_rows(windows: Sequence[Window], blocks: int) -> str:
    if not all(w.starts for w in windows):
        return "they have no time"
    length = windows[0].block_h
    what = "whole days" if length == DAY_H else f"whole stretches of {length} h"
    return f"the reference has {blocks} {what}, fewer than {LEAST_BLOCKS}"


def _with_rows(blocks: Counts, starts: NDArray[np.int64]) -> tuple[Counts, NDArray[np.int64]]:
    """Without the blocks in which nothing happened: shuffled too, they would turn one busy day into several."""
    used = blocks.sum(axis=1) > 0
    return blocks[used], starts[used]


def _whole_blocks(hours: HourlyProfiles, phase: int, length: int) -> NDArray[np.int64]:
    """First hours of the blocks that lie within the reference, in step with one that begins at `phase`."""
    begin, end = int(hours.hours[0]), int(hours.hours[-1]) + 1
    # A reference begins and ends at a moment of the clock; its first and last hour with rows may come a little inside.
    slack = max(length // 8, 1)
    earliest = phase + -(-(begin - slack - phase) // length) * length
    starts = np.arange(earliest, end, length, dtype=np.int64)
    return starts[starts + length <= end + slack]
