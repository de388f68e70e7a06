"""The stream without an end: each event's features are online within the second, and in the lake every few seconds.

Features go online before their events are in the lake. Killed in between, the events are read from Kafka again, and the
online store takes the same values again: nothing is online that the lake will not hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from features import windows
from features.built import Built, read_built
from features.consumer import (
    FIRST_POLL_ROWS,
    Batch,
    Columns,
    behind,
    open_consumer,
    partitions_of,
    poll,
    rows_to_poll,
    start_positions,
    tell_positions,
)
from features.ingest import TopicIngest, ViewRefresh, ingest_topics, refresh_view
from features.lake import Lake
from features.store import OnlineWriter, view_table
from features.tail import Tail
from features.topic_stream import TopicStream, topic_schema
from perennial.errors import BlockedError, ConflictError, StateError, UnreachableError
from perennial.settings import Settings
from pipelines.spec import FeatureView, PipelineSpec

LOG = logging.getLogger(__name__)
POLL_MS = 100
POLL_ROWS = 5_000
LAST_TRIES = 5
# What ends one session and lets the next go on.
PASSING = (ConflictError, UnreachableError, BlockedError)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


@dataclass(frozen=True)
class Committed:
    """What one commit of the follower kept."""

    topics: tuple[TopicIngest, ...]
    views: tuple[ViewRefresh, ...]


class Follower:
    """Follows the topics of a pipeline until it is stopped.

    What came while nobody followed is taken in first, as a micro-batch. Stopped within that, it keeps what was read.

    Whatever goes wrong - another ingest, a broker or an online store that is away, a full disk - ends a session; the next
    one begins where the lake's last commit ended. It is the same as being killed.

    Args:
        settings: where everything is.
        lake: the pipeline's lake.
        spec: the pipeline.
        every_s: seconds between two commits to the lake.
        max_rows: records after which a commit comes earlier.
        on_commit: told after each commit.
    """

    def __init__(
        self,
        settings: Settings,
        lake: Lake,
        spec: PipelineSpec,
        every_s: float,
        max_rows: int,
        on_commit: Callable[[Committed], None],
    ) -> None:
        self._settings, self._lake, self._spec = settings, lake, spec
        self._every_s, self._max_rows, self._on_commit = every_s, max_rows, on_commit
        self._stopped = threading.Event()
        self._warned: set[str] = set()
        self._rebuilds: dict[str, int] = {}
        # By topic, positions up to which a session read that could not keep it: features up to there are online.
        self._owed: dict[str, Mapping[int, int]] = {}

    def stop(self) -> None:
        """End soon: what was read is committed first."""
        self._stopped.set()

    def run(self) -> None:
        """Follow until `stop`.

        Raises:
            StateError: the stream cannot go on by itself (records expired, another broker's data), or a view was built anew by
            another definition than this code's.
            ConflictError, UnreachableError, BlockedError: it was stopped while what it had read could not be kept.
        """
        wait_s, last_tries = FIRST_WAIT_S, LAST_TRIES
        while True:
            began = time.monotonic()
            try:
                if self._catch_up():
                    with ExitStack() as stack:
                        self._follow(_Session(self, stack))
                if self._stopped.is_set():
                    return
            except PASSING as error:
                if time.monotonic() - began > LONGEST_WAIT_S:
                    wait_s = FIRST_WAIT_S
                if not self._stopped.is_set():
                    LOG.warning("%s; going on from the lake's last commit in %.1f s", error.what, wait_s)
                if self._stopped.wait(wait_s):
                    # What was read last is in Kafka still. After another writer's commit one more session takes it in.
                    last_tries -= 1
                    if not isinstance(error, ConflictError) or not last_tries:
                        raise
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _catch_up(self) -> bool:
        """Take in what came while nobody followed, in bounded memory; False if it was stopped meanwhile."""
        self._check_code()
        settings, lake, spec, now = self._settings, self._lake, self._spec, datetime.now(UTC)
        topics = ingest_topics(settings, lake, spec.events, now, self._enough)
        # One after the other, until it was stopped.
        views = tuple(refresh_view(settings, lake, spec, v, self._ended) for v in spec.views if not self._ended())
        self._on_commit(Committed(topics, views))
        return not self._ended()

    def _check_code(self) -> None:
        """Raise StateError if a view was built anew by other code than this: what this builds would be wrong again."""
        for view in self._spec.views:
            built = read_built(self._lake, self._spec, view)
            if built.rebuilds > self._rebuilds.setdefault(view.name, built.rebuilds) and built.warning:
                raise StateError(
                    f"{view.name} was built anew by another definition than the code's that runs here; "
                    "what was read is in Kafka still. Start this follower again, with the new code"
                )

    def _ended(self) -> bool:
        return self._stopped.is_set() and not self._owed

    def _enough(self, reached: Mapping[str, Mapping[int, int]]) -> bool:
        return self._stopped.is_set() and all(
            reached[topic].get(partition, 0) >= position
            for topic, owed in self._owed.items()
            for partition, position in owed.items()
        )

    def _follow(self, session: _Session) -> None:
        self._owed = {}
        try:
            session.run()
        except PASSING:
            self._owed = session.reached
            raise


class _Session:
    """From one start at the lake's positions to the next."""

    def __init__(self, follower: Follower, stack: ExitStack) -> None:
        self._of = follower
        settings, lake, spec = follower._settings, follower._lake, follower._spec
        self._built = {view.name: self._known(view) for view in spec.views}
        self._streams = {event.topic: TopicStream(settings, lake, event) for event in spec.events}
        self._writer = OnlineWriter(spec, settings)
        self._tails = {view.name: self._tail(view) for view in spec.views}
        self._no_rows = {view.name: self._nothing(view) for view in spec.views}
        self._rows: dict[str, list[pl.DataFrame]] = {view.name: [] for view in spec.views}
        self._online_keys = dict.fromkeys(self._rows, 0)
        self._counts = {topic: stream.arrivals.counts for topic, stream in self._streams.items()}
        self._consumer = stack.enter_context(open_consumer(settings, f"perennial-{spec.name}"))
        self._assigned = self._assign()
        self._committed_at = time.monotonic()
        self._poll_rows = FIRST_POLL_ROWS

    @property
    def reached(self) -> dict[str, Mapping[int, int]]:
        """By topic, the positions up to which it read."""
        return {topic: stream.reached for topic, stream in self._streams.items()}

    def run(self) -> None:
        """Read, build, write online; commit now and then; until there is another partition, or the end."""
        while True:
            self._take(poll(self._consumer, POLL_MS, self._poll_rows))
            stopped = self._of._stopped.is_set()
            waited = time.monotonic() - self._committed_at >= self._of._every_s
            pending = sum(stream.pending_rows for stream in self._streams.values())
            full = pending >= self._of._max_rows or any(stream.is_full for stream in self._streams.values())
            if waited or stopped or full:
                self._commit()
                if stopped or self._partitions() != self._assigned:
                    return

    def _take(self, polled: Mapping[Any, Sequence[Any]]) -> None:
        columns: dict[str, Columns] = {}
        for tp, fetched in polled.items():
            columns.setdefault(tp.topic, Columns()).add(tp.partition, fetched)
        rows, size = sum(map(len, columns.values())), sum(some.size for some in columns.values())
        self._poll_rows = rows_to_poll(rows, size, POLL_ROWS) or self._poll_rows
        now = datetime.now(UTC)
        beyond: list[FeatureView] = []
        for topic, some in columns.items():
            reached = {tp.partition: self._consumer.position(tp) for tp in polled if tp.topic == topic}
            events = self._streams[topic].take(Batch(topic, some.records(), reached), now)
            if events.height:
                beyond += [v for v in self._of._spec.views if v.topic == topic and not self._build(v, events)]
        if beyond:
            self._build_from_lake(beyond)

    def _build(self, view: FeatureView, events: pl.DataFrame) -> bool:
        """Bring events online; False if one is so late that the tail does not hold its windows."""
        rows = self._tails[view.name].build(events)
        if rows is None:
            return False
        rows = self._built[view.name].dated(rows)
        self._online_keys[view.name] += self._writer.write(view, rows)
        self._rows[view.name].append(rows)
        return True

    def _build_from_lake(self, views: Sequence[FeatureView]) -> None:
        self._commit(but_not={view.name for view in views})
        for view in views:
            refreshed = refresh_view(self._of._settings, self._of._lake, self._of._spec, view)
            self._online_keys[view.name] += refreshed.online_keys
            self._tails[view.name], self._built[view.name] = self._tail(view), self._known(view)

    def _commit(self, but_not: Set[str] = frozenset()) -> None:
        lake, spec = self._of._lake, self._of._spec
        topics, views = [], []
        built = {topic: stream.positions for topic, stream in self._streams.items()}
        for stream in self._streams.values():
            stream.commit()
        for view in spec.views:
            rows = self._rows[view.name]
            self._rows[view.name] = []
            positions = self._streams[view.topic].positions
            if view.name in but_not or positions == built[view.topic]:
                continue
            kept = pl.concat([self._no_rows[view.name], *rows])
            known = self._built[view.name] = self._built[view.name].holding(kept)
            # A backfill may have replaced all rows and have moved no positions; these belong to those before it.
            lake.append(view_table(view), kept, positions, known.words, read_from=built[view.topic], still=known.still)
            views.append(ViewRefresh(view.name, kept.height, self._online_keys[view.name]))
            self._online_keys[view.name] = 0
        for topic, stream in self._streams.items():
            counts = stream.arrivals.counts
            lag_rows = behind(self._consumer, topic, stream.positions)
            topics.append(TopicIngest(topic, counts - self._counts[topic], lag_rows, stream.newest))
            if counts != self._counts[topic]:
                tell_positions(self._consumer, topic, stream.positions)
            self._counts[topic] = counts
        self._committed_at = time.monotonic()
        self._of._on_commit(Committed(tuple(topics), tuple(views)))

    def _known(self, view: FeatureView) -> Built:
        known = read_built(self._of._lake, self._of._spec, view)
        if known.warning and view.name not in self._of._warned:
            self._of._warned.add(view.name)
            LOG.warning("%s", known.warning)
        return known

    def _tail(self, view: FeatureView) -> Tail:
        stream = self._streams[view.topic]
        return Tail(self._of._lake, view, stream.event, stream.positions, stream.newest)

    def _nothing(self, view: FeatureView) -> pl.DataFrame:
        event = self._streams[view.topic].event
        return windows.build_features(pl.DataFrame(schema=topic_schema(event)), view, event)

    def _assign(self) -> set[Any]:
        starts: dict[Any, int] = {}
        for topic, stream in self._streams.items():
            starts |= start_positions(self._consumer, topic, stream.positions)
        self._consumer.assign(list(starts))
        for tp, start in starts.items():
            self._consumer.seek(tp, start)
        return set(starts)

    def _partitions(self) -> set[Any]:
        return {tp for topic in self._streams for tp in partitions_of(self._consumer, topic)}
