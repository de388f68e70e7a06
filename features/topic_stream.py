"""A topic on its way into the lake: what is read is decoded and marked, and kept with its positions at a commit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import polars as pl

from features.arrival import (
    ARRIVAL_COLUMNS,
    ARRIVALS,
    LATE_S,
    TOO_LATE,
    Arrivals,
    Counts,
    SeenIds,
    came_too_late,
    lateness,
)
from features.avro import WriterSchemas
from features.consumer import Batch
from features.dead_letters import keep_dead_letters
from features.events import DEAD_LETTER_SCHEMA, decode, events_schema
from features.lake import EVENT_TIMESTAMP, IS_DUPLICATE, Lake
from perennial.settings import Settings
from pipelines.spec import EventSpec

# Of records that wait for a commit; small events reach the one, large ones and dead letters the other.
COMMIT_ROWS, COMMIT_BYTES = 100_000, 128 << 20


class TopicStream:
    """One topic's stream, from where the lake's last commit ended. The micro-batch and the follower both are one of these.

    Nothing that was taken counts until it is committed: dropped before, it is read again from the lake's positions.

    Args:
        settings: where the broker is, for dead letters.
        lake: the pipeline's lake.
        event: the topic.
    """

    def __init__(self, settings: Settings, lake: Lake, event: EventSpec) -> None:
        add_new_columns(lake, event)
        self.event = event
        self._settings = settings
        self._lake = lake
        self.positions: Mapping[int, int] = lake.offsets(event.table)
        self.arrivals = Arrivals.from_json(lake.property(event.table, ARRIVALS))
        avro = event.encoding == "avro"
        self._schemas = WriterSchemas(event.avro_schemas, settings.schema_registry_url) if avro else None
        self._events: list[pl.DataFrame] = []
        self._letters: list[pl.DataFrame] = []
        self._reached = dict(self.positions)
        self._pending = self.arrivals
        self._seen = SeenIds(event, self._ids, self.newest)

    @property
    def reached(self) -> Mapping[int, int]:
        """Next position by partition, after everything that was taken."""
        return self._reached

    @property
    def pending_rows(self) -> int:
        """Records that were taken since the last commit."""
        return sum(frame.height for frame in (*self._events, *self._letters))

    @property
    def is_full(self) -> bool:
        """Whether so much was taken since the last commit that the next is due."""
        held = sum(frame.estimated_size() for frame in (*self._events, *self._letters))
        return self.pending_rows >= COMMIT_ROWS or held >= COMMIT_BYTES

    @property
    def pending_letters(self) -> pl.DataFrame:
        """Dead letters that wait for the commit."""
        return pl.concat([pl.DataFrame(schema=DEAD_LETTER_SCHEMA), *self._letters])

    @property
    def newest(self) -> datetime | None:
        """The newest event time that was taken."""
        return max(self._pending.watermarks.values(), default=None)

    def take(self, batch: Batch, created: datetime) -> pl.DataFrame:
        """Decode records and mark what they are; they wait for the commit.

        Args:
            batch: records that follow those taken before.
            created: when they are taken in, UTC.

        Returns:
            The valid events, with the columns of their lake table.
        """
        # A replay takes history in as of long ago; what is ahead of the wall clock, too, is a clock gone wrong.
        now = max(created, datetime.now(UTC))
        decoded = decode(batch.records, self.event, created, now, self._schemas)
        late, watermarks = lateness(decoded.events, self._pending.watermarks)
        too_late = (late > float(self.event.lateness_s)).alias(TOO_LATE)
        # Those that come too late count nowhere, and looking for their copies would mean reading all of history.
        duplicate = np.zeros(late.len(), dtype=np.bool_)
        duplicate[~too_late.to_numpy()] = self._seen.mark(decoded.events.filter(~too_late))
        marked = decoded.events.with_columns(late, too_late, pl.Series(IS_DUPLICATE, duplicate))
        counts = self._pending.counts + Counts.of(marked, decoded.dead_letters.height)
        self._pending = Arrivals(watermarks, counts)
        self._events.append(marked)
        self._letters.append(decoded.dead_letters)
        self._reached.update(batch.offsets)
        return marked

    def commit(self) -> None:
        """Keep what was taken: rows, positions and arrivals in one commit.

        Raises:
            ConflictError: another ingest committed in between; nothing was kept, open the stream anew.
        """
        if self._reached == self.positions:
            return
        # Dead letters first: killed in between, they are found again and known by topic, partition and offset.
        keep_dead_letters(self._settings, self._lake, self.pending_letters)
        self.positions = self._lake.append(
            self.event.table,
            pl.concat(self._events),
            self._reached,
            properties={ARRIVALS: self._pending.to_json()},
            read_from=self.positions,
        ).offsets
        self.arrivals = self._pending
        self._events, self._letters = [], []
        if self.newest:
            self._seen.committed(self.newest)

    def _ids(self, since: datetime, until: datetime) -> pl.DataFrame:
        wanted = tuple(dict.fromkeys((*self.event.event_id, EVENT_TIMESTAMP)))
        if not self._lake.exists(self.event.table):
            return pl.DataFrame(schema={name: self.event.schema_[name] for name in wanted})
        known = self._lake.read(self.event.table, since, until, (*wanted, LATE_S, TOO_LATE))
        # A copy in time of an event that came too late is the one that counts; `take` does not remember those, either.
        return known.filter(~came_too_late(self.event)).select(wanted)


def add_new_columns(lake: Lake, event: EventSpec) -> None:
    """A field that is new in the pipeline is a column from now on, though no event has it yet."""
    columns = lake.columns(event.table)
    if columns and not topic_schema(event).keys() <= columns:
        lake.append(event.table, pl.DataFrame(schema=topic_schema(event)))


def topic_schema(event: EventSpec) -> dict[str, pl.DataType]:
    """Columns of a topic's lake table."""
    return {**events_schema(event), **ARRIVAL_COLUMNS}
