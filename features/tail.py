"""The newest events of a feature view in memory, so that a stream need not read them from the lake again and again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from features import windows
from features.arrival import counted
from features.lake import EVENT_TIMESTAMP, Lake
from pipelines.spec import EventSpec, FeatureView

# Every operation costs a little for each chunk.
MOST_CHUNKS = 32


class Tail:
    """The events that windows of coming events can reach.

    Args:
        lake: read once, at the beginning.
        view: whose features.
        event: the view's topic.
        positions: Kafka positions up to which events were given; what the lake holds after them will be given to `build`.
        newest: newest event time in the lake; None before the first event.
    """

    def __init__(
        self, lake: Lake, view: FeatureView, event: EventSpec, positions: Mapping[int, int], newest: datetime | None
    ) -> None:
        self._view, self._event = view, event
        self._reach = windows.lookback(view)
        columns = windows.inputs(view, event)
        # Twice the reach: an event that is late by as much finds all of its windows here, too.
        self._since = newest - 2 * self._reach if newest else None
        # Another ingest may have committed since the positions were read. Its events, read from Kafka once more, would count
        # twice; and online, where the row that knows more events is the newer, no later row would take their place.
        self._events = counted(lake.read_places(event.table, {}, positions, columns, self._since), event)
        self._newest = newest

    def build(self, new: pl.DataFrame) -> pl.DataFrame | None:
        """Feature rows that new events add or correct; from now on they are in the tail.

        Args:
            new: events as their stream marked them, which follow those that were given before.

        Returns:
            As `windows.build_features`; None if an event is so late that its windows begin before the tail. Then the
            features must be built from the lake, and this tail is of no more use.
        """
        new = counted(new.select(self._events.columns), self._event)
        times = new.get_column(EVENT_TIMESTAMP)
        first, last = times.min(), times.max()
        if not isinstance(first, datetime) or not isinstance(last, datetime):
            return windows.build_features(new, self._view, self._event)
        if self._since is not None and first - self._reach < self._since:
            return None
        within = (pl.col(EVENT_TIMESTAMP) > first - self._reach) & (pl.col(EVENT_TIMESTAMP) <= last + self._reach)
        around = windows.mark_new(self._events.filter(within), new, self._view)
        rows = windows.build_features(around, self._view, self._event)
        self._events = pl.concat([self._events, new], rechunk=self._events.n_chunks() > MOST_CHUNKS)
        self._forget(last)
        return rows

    def _forget(self, last: datetime) -> None:
        self._newest = max(self._newest, last) if self._newest else last
        oldest = self._newest - 2 * self._reach
        # Copying the tail costs more than it saves until a part worth the while is out of reach.
        if self._since is None or oldest - self._since > self._reach / 4:
            self._events = self._events.filter(pl.col(EVENT_TIMESTAMP) > oldest).rechunk()
            self._since = oldest
