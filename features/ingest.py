"""One micro-batch of the stream: Kafka -> lake -> features -> online store. Each step goes on where the last commit ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, groupby
from operator import attrgetter

import polars as pl

from features import windows
from features.arrival import Counts, counted
from features.backlog import read_backlog
from features.built import read_built
from features.consumer import ahead, behind, open_consumer, read_to_end, tell_positions
from features.lake import EVENT_TIMESTAMP, Lake
from features.store import view_table, write_online
from features.topic_stream import TopicStream, topic_schema
from perennial.errors import ConflictError
from perennial.settings import Settings
from pipelines.spec import EventSpec, FeatureView, PipelineSpec

# Records from which on a process of its own reads them; it takes a third of a second to start.
BACKLOG_ROWS = 100_000
# Rows of a topic that features are built from at once: a backlog of years is built from in steps.
MAX_NEW_ROWS = 100_000
CONFLICT_TRIES = 4


@dataclass(frozen=True)
class TopicIngest:
    """What one run took from a topic.

    Attributes:
        topic: the topic.
        counts: what its records were.
        lag_rows: records that the broker holds and the lake does not.
        newest: newest event time in the lake; None before the first event.
    """

    topic: str
    counts: Counts
    lag_rows: int
    newest: datetime | None

    @property
    def ingested(self) -> int:
        """Records that became events in the lake."""
        return self.counts.ingested

    @property
    def dead_lettered(self) -> int:
        """Records that did not, each with its reason."""
        return self.counts.dead_lettered


@dataclass(frozen=True)
class ViewRefresh:
    """What one run did to a feature view.

    Attributes:
        view: the view.
        rows: feature rows added to the lake.
        online_keys: keys whose online value was written.
    """

    view: str
    rows: int
    online_keys: int


def ingest_topics(
    settings: Settings,
    lake: Lake,
    events: Sequence[EventSpec],
    created: datetime,
    enough: Callable[[Mapping[str, Mapping[int, int]]], bool] = lambda _: False,
) -> tuple[TopicIngest, ...]:
    """Take in every record of the topics that the lake does not hold yet, one topic after the other, in bounded memory.

    Args:
        created: the run's clock, UTC.
        enough: asked after each batch whether to end there, with the positions that were reached, by topic.

    Returns:
        What was taken in, a topic each.

    Raises:
        UnreachableError: no broker answers.
        ConflictError: other ingests committed in between, CONFLICT_TRIES times; the next run goes on from there.
    """
    taken = {event.topic: Counts() for event in events}
    for tries_left in reversed(range(CONFLICT_TRIES)):
        try:
            return _take_in(settings, lake, events, created, enough, taken)
        except ConflictError:
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def _take_in(
    settings: Settings,
    lake: Lake,
    events: Sequence[EventSpec],
    created: datetime,
    enough: Callable[[Mapping[str, Mapping[int, int]]], bool],
    taken: dict[str, Counts],
) -> tuple[TopicIngest, ...]:
    """As `ingest_topics`, once; `taken` is what earlier tries committed, to which it adds."""
    streams = {event.topic: TopicStream(settings, lake, event) for event in events}
    positions = {topic: stream.positions for topic, stream in streams.items()}

    def commit(topic: str) -> None:
        before = streams[topic].arrivals.counts
        streams[topic].commit()
        taken[topic] += streams[topic].arrivals.counts - before

    with open_consumer(settings, f"perennial-{lake.namespace}") as consumer:
        if sum(behind(consumer, topic, at) for topic, at in positions.items()) >= BACKLOG_ROWS:
            batches = read_backlog(settings, positions)
        else:
            batches = chain.from_iterable(read_to_end(consumer, topic, at) for topic, at in positions.items())
        # Closed before the consumer, whatever happens: it is read in a thread.
        with closing(ahead(batches)) as read:
            for topic, of_topic in groupby(read, attrgetter("topic")):
                for batch in of_topic:
                    streams[topic].take(batch, created)
                    if ended := enough({topic: stream.reached for topic, stream in streams.items()}):
                        break
                    if streams[topic].is_full:
                        commit(topic)
                commit(topic)
                if ended:
                    break
        lag_rows = {topic: behind(consumer, topic, stream.positions) for topic, stream in streams.items()}
        for topic, stream in streams.items():
            if taken[topic] != Counts():
                tell_positions(consumer, topic, stream.positions)
    for event in events:
        if not lake.exists(event.table):
            lake.append(event.table, pl.DataFrame(schema=topic_schema(event)))
    return tuple(TopicIngest(topic, taken[topic], lag_rows[topic], stream.newest) for topic, stream in streams.items())


def refresh_view(
    settings: Settings,
    lake: Lake,
    spec: PipelineSpec,
    view: FeatureView,
    enough: Callable[[], bool] = lambda: False,
) -> ViewRefresh:
    """Bring a feature view up to the events in the lake, late ones included.

    The feature table says up to which Kafka positions it was built, in the same commit as its rows.

    Args:
        enough: asked after each commit whether to end there.

    Returns:
        What was added. Nothing new in the lake: nothing is done.

    Raises:
        ConflictError: another ingest built the same features in between; the next run goes on from there.
    """
    event, table = spec.event(view.topic), view_table(view)
    known = read_built(lake, spec, view)
    reached: Mapping[int, int] = lake.offsets(table)
    added = online_keys = 0
    for built, end in new_features(lake, view, event, reached, lake.offsets(event.table)):
        rows = known.dated(built)
        known = known.holding(rows)
        # Online first: killed in between, the rows are built and written once more, and the online store takes them again.
        online_keys += write_online(spec, settings, view, rows)
        reached = lake.append(table, rows, end, known.words, read_from=reached, still=known.still).offsets
        added += rows.height
        if enough():
            break
    if not lake.exists(table):
        lake.append(table, windows.build_features(pl.DataFrame(schema=topic_schema(event)), view, event))
    return ViewRefresh(view.name, added, online_keys)


def new_features(
    lake: Lake, view: FeatureView, event: EventSpec, built: Mapping[int, int], there: Mapping[int, int]
) -> Iterator[tuple[pl.DataFrame, Mapping[int, int]]]:
    """Feature rows that events between two Kafka positions add or correct, in steps of bounded size.

    Args:
        built: positions up to which features were built.
        there: positions up to which the lake holds events, or some before.

    Returns:
        For each step its rows, as of `build_new_features`, and the positions that it reaches; the last are `there`.
    """
    # A new partition's first offset may be far from 0.
    begin = built if there.keys() <= built.keys() else {**lake.first_offsets(event.table), **built}
    before: Mapping[int, int] = built
    for end in _steps(begin, there, MAX_NEW_ROWS):
        new = lake.read_places(event.table, before, end, windows.inputs(view, event))
        yield build_new_features(lake, view, event, before, new), end
        before = {**before, **end}


def build_new_features(
    lake: Lake, view: FeatureView, event: EventSpec, before: Mapping[int, int], new: pl.DataFrame
) -> pl.DataFrame:
    """Feature rows that new events add or correct.

    Args:
        before: Kafka positions up to which features were built; the lake holds those events.
        new: the events that follow, with the columns `windows.inputs`.
    """
    # Otherwise one event of long ago, which corrects nothing, would have all of history read.
    new = counted(new, event)
    times = new.get_column(EVENT_TIMESTAMP)
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return windows.build_features(new, view, event)
    reach = windows.lookback(view)
    until = last + reach + timedelta(microseconds=1)
    known = lake.read_places(event.table, {}, before, windows.inputs(view, event), first - reach, until)
    return windows.build_features(windows.mark_new(known, new, view), view, event)


def _steps(start: Mapping[int, int], end: Mapping[int, int], most: int) -> Iterator[Mapping[int, int]]:
    """Positions between two, so that at most about `most` records lie between one and the next; the last is `end`."""
    rows = {p: position - start.get(p, 0) for p, position in end.items()}
    steps = -(-sum(rows.values()) // most)
    for number in range(1, steps + 1):
        yield {p: start.get(p, 0) + count * number // steps for p, count in rows.items()}
