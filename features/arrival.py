"""What the order of arrival says of events: how late each one is, whether that is too late, and whether it was here before.

All of it is decided once, when an event is taken in, and is in columns of its lake row. Features read the columns, so a
backfill counts exactly the events that the stream counted, however the stream was cut into batches, and whatever the topic's
lateness and event id have become since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from features.lake import EVENT_TIMESTAMP, IS_DUPLICATE
from pipelines.spec import EventSpec

LATE_S, TOO_LATE = "late_s", "too_late"
ARRIVAL_COLUMNS: dict[str, pl.DataType] = {
    LATE_S: pl.Float64(),
    TOO_LATE: pl.Boolean(),
    IS_DUPLICATE: pl.Boolean(),
}
# What a lake commit says of arrivals, beside its positions.
ARRIVALS = "perennial.arrivals"

# Below it nothing is let go: a partition that lags behind would have its stretch read from the lake with every batch.
MOST_IDS = 4_000_000

Times = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Counts:
    """Records of a topic since its first one.

    Attributes:
        ingested: records that became events.
        dead_lettered: records that did not.
        late: events, not copies, that came after a newer one of their partition.
        too_late: those of them that came later than the topic's stated lateness, and correct nothing.
        duplicates: events that were here before.
    """

    ingested: int = 0
    dead_lettered: int = 0
    late: int = 0
    too_late: int = 0
    duplicates: int = 0

    def __add__(self, other: Counts) -> Counts:
        ours, theirs = asdict(self), asdict(other)
        return Counts(**{name: count + theirs[name] for name, count in ours.items()})

    def __sub__(self, other: Counts) -> Counts:
        ours, theirs = asdict(self), asdict(other)
        return Counts(**{name: count - theirs[name] for name, count in ours.items()})

    @classmethod
    def of(cls, marked: pl.DataFrame, dead_lettered: int) -> Counts:
        """Counts of one batch of marked events."""
        first = marked.filter(~pl.col(IS_DUPLICATE))
        return cls(
            ingested=marked.height,
            dead_lettered=dead_lettered,
            late=int((first.get_column(LATE_S) > 0).sum()),
            too_late=int(first.get_column(TOO_LATE).sum()),
            duplicates=int(marked.get_column(IS_DUPLICATE).sum()),
        )


@dataclass(frozen=True)
class Arrivals:
    """What a topic's commit says of what had arrived by then.

    Attributes:
        watermarks: newest event time by Kafka partition.
        counts: records since the first.
    """

    watermarks: Mapping[int, datetime] = field(default_factory=dict)
    counts: Counts = Counts()

    def to_json(self) -> str:
        """As the commit keeps it."""
        watermarks = {str(partition): at.isoformat() for partition, at in self.watermarks.items()}
        return json.dumps({"watermarks": watermarks, "counts": asdict(self.counts)})

    @classmethod
    def from_json(cls, text: str | None) -> Arrivals:
        """What a commit kept; None is the time before the first."""
        if text is None:
            return cls()
        told = json.loads(text)
        watermarks = {int(p): datetime.fromisoformat(at) for p, at in told["watermarks"].items()}
        return cls(watermarks, Counts(**told["counts"]))


def counted(events: pl.DataFrame, event: EventSpec) -> pl.DataFrame:
    """The events that features count: no second copies, and none that came too late."""
    return events.filter(~pl.col(IS_DUPLICATE).fill_null(value=False), ~came_too_late(event))


def came_too_late(event: EventSpec) -> pl.Expr:
    """Whether an event came later than the lateness that its topic stated then; in rows that do not tell, than it states now."""
    return pl.col(TOO_LATE).fill_null(pl.col(LATE_S).fill_null(0.0) > float(event.lateness_s))


def lateness(events: pl.DataFrame, watermarks: Mapping[int, datetime]) -> tuple[pl.Series, dict[int, datetime]]:
    """How far each event lags behind the newest one that its partition held before it.

    Args:
        events: `event_timestamp` and `kafka_partition`, in the order of the log within a partition.
        watermarks: newest event time by partition before these events.

    Returns:
        Seconds (0 for an event that is not late), and the watermarks after them.
    """
    at = pl.col(EVENT_TIMESTAMP)
    known = pl.col("kafka_partition").replace_strict(
        list(watermarks), list(watermarks.values()), default=None, return_dtype=pl.Datetime("us", "UTC")
    )
    marked = events.select(
        "kafka_partition",
        at,
        before=pl.max_horizontal(known, at.cum_max().shift(1).over("kafka_partition")),
    )
    late = marked.select(
        ((pl.col("before") - at).dt.total_microseconds() / 1e6).clip(lower_bound=0.0).fill_null(0.0).alias(LATE_S)
    ).to_series()
    newest = dict(marked.group_by("kafka_partition").agg(at.max()).iter_rows())
    return late, {
        p: max(known for known in (watermarks.get(p), newest.get(p)) if known is not None)
        for p in {*watermarks, *newest}
    }


@dataclass(frozen=True)
class _Run:
    """Ids that were seen, as hashes sorted with their event times (microseconds)."""

    hashes: Hashes
    times: Times

    @classmethod
    def of(cls, hashes: Hashes, times: Times) -> _Run:
        """A run of any ids; quick if they are sorted by hash, or are two such parts, one after the other."""
        order = np.argsort(hashes, kind="stable")  # merges parts that are sorted
        hashes, times = hashes[order], times[order]
        same = hashes[1:] == hashes[:-1]
        if same.any():
            # Few hashes are there twice; only those are sorted by time as well.
            twice = np.zeros(len(hashes), dtype=np.bool_)
            twice[1:][same] = twice[:-1][same] = True
            times[twice] = times[twice][np.lexsort((times[twice], hashes[twice]))]
        return cls(hashes, times)

    def near(self, hashes: Hashes, times: Times, within_us: int) -> npt.NDArray[np.bool_]:
        """Whether each (hash, time) has the same hash here at most that far away in time."""
        low = np.searchsorted(self.hashes, hashes, "left")
        end = np.searchsorted(self.hashes, hashes, "right")
        found = np.zeros(len(hashes), dtype=np.bool_)
        some = np.flatnonzero(end > low)
        if not len(some):
            return found
        low, end, wanted = low[some], end[some], times[some] - within_us
        last = end.copy()
        # Of the times with that hash the first that is not too old: a binary search, for all of them at once.
        while (open_ := low < end).any():
            middle = (low + end) // 2
            below = open_ & (self.times[np.minimum(middle, len(self.times) - 1)] < wanted)
            low, end = np.where(below, middle + 1, low), np.where(open_ & ~below, middle, end)
        within = low < last
        within[within] = self.times[low[within]] <= times[some][within] + within_us
        found[some] = within
        return found


class SeenIds:
    """Which event ids were here, near which event times.

    Ids are kept as 64-bit hashes, 16 bytes an event; beyond `MOST_IDS` only those within the horizon. Two different ids that
    are taken for one cost a feature one event, with a chance of n / 2**64 an event (n: events within the horizon); the event
    itself is in the lake all the same.

    Args:
        event: the topic.
        read: what the lake holds of [since, until) by event time: `event_timestamp` and the fields of the event's id.
        newest: newest event time that the lake holds; None = it holds nothing.
    """

    def __init__(
        self, event: EventSpec, read: Callable[[datetime, datetime], pl.DataFrame], newest: datetime | None
    ) -> None:
        self._event = event
        self._read = read
        # A stream in order asks for later times with every batch; the lake has nothing of them. It moves with each commit.
        self._end = newest + timedelta(microseconds=1) if newest else None
        self._within = timedelta(seconds=event.dedup_s)
        self._runs: list[_Run] = []
        self._covered: tuple[datetime, datetime] | None = None

    def mark(self, events: pl.DataFrame) -> npt.NDArray[np.bool_]:
        """Whether each event has the id of an earlier one, here or in the lake, at most `dedup_s` away in event time.

        Args:
            events: in the order in which they came; they are seen from now on.
        """
        if not events.height:
            return np.zeros(0, dtype=np.bool_)
        hashes, times = self._hashed(events)
        order = np.argsort(hashes, kind="stable")
        by_hash = hashes[order], times[order]  # looked up in order, they are found in a third of the time
        at = events.get_column(EVENT_TIMESTAMP)
        first, last = at.min(), at.max()
        if not isinstance(first, datetime) or not isinstance(last, datetime):
            raise TypeError(f"{self._event.topic}: event time is {first!r}")
        self._cover(first - self._within, last + self._within + timedelta(microseconds=1))
        within_us = self._event.dedup_s * 1_000_000
        found = _copies(hashes, times, order, within_us)
        for run in self._runs:
            found[order] |= run.near(*by_hash, within_us)
        self._add(_Run.of(*by_hash))
        return found

    def committed(self, newest: datetime) -> None:
        """All that was marked is in the lake now, so old ids need not be remembered: the lake can be asked.

        Args:
            newest: newest event time in the lake.
        """
        self._end = newest + timedelta(microseconds=1)
        if sum(len(run.hashes) for run in self._runs) > MOST_IDS:
            self._forget(newest - timedelta(seconds=self._event.lateness_s) - self._within)

    def _forget(self, before: datetime) -> None:
        floor = _microseconds(before)
        kept = []
        for run in self._runs:
            stays = run.times >= floor
            if not stays.all():
                run = _Run(run.hashes[stays], run.times[stays])
            kept.append(run)
        self._runs = [run for run in kept if len(run.hashes)]
        if self._covered and before > self._covered[0]:
            self._covered = (before, max(before, self._covered[1]))

    def _hashed(self, events: pl.DataFrame) -> tuple[Hashes, Times]:
        times = events.get_column(EVENT_TIMESTAMP).dt.epoch("us").to_numpy()
        return events.select(self._event.event_id).hash_rows().to_numpy(), times

    def _cover(self, since: datetime, until: datetime) -> None:
        """Know what the lake holds of that stretch, too."""
        if self._covered is None:
            wanted = [(since, until)]
            self._covered = (since, until)
        else:
            low, high = self._covered
            wanted = [(since, low)] if since < low else []
            wanted += [(high, until)] if until > high else []
            self._covered = (min(low, since), max(high, until))
        for start, end in wanted:
            if self._end is None or start >= self._end:
                continue
            known = self._read(start, min(end, self._end))
            if known.height:
                self._add(_Run.of(*self._hashed(known)))

    def _add(self, run: _Run) -> None:
        self._runs.append(run)
        # Runs stay few, and each id is sorted again only as often as their number doubles.
        while len(self._runs) > 1 and len(self._runs[-2].hashes) < 2 * len(self._runs[-1].hashes):
            newer, older = self._runs.pop(), self._runs.pop()
            merged = np.concatenate([older.hashes, newer.hashes]), np.concatenate([older.times, newer.times])
            self._runs.append(_Run.of(*merged))


def _copies(hashes: Hashes, times: Times, order: npt.NDArray[np.intp], within_us: int) -> npt.NDArray[np.bool_]:
    """Whether each has an earlier one in the batch with the same hash, that near in time; `order` sorts the hashes, stably."""
    same = hashes[order][1:] == hashes[order][:-1]
    found = np.zeros(len(hashes), dtype=np.bool_)
    if not same.any():
        return found
    twice = np.zeros(len(hashes), dtype=np.bool_)
    twice[order[1:][same]] = twice[order[:-1][same]] = True
    rows = np.flatnonzero(twice)
    some = pl.DataFrame({"row": rows, "id": hashes[rows], "at": times[rows]})
    window = f"{within_us + 1}i"
    first = pl.min_horizontal(
        pl.col("row").rolling_min_by("at", window, closed="right").over("id"),
        pl.col("row").rolling_min_by(-pl.col("at"), window, closed="right").over("id"),
    )
    found[rows] = some.select(first < pl.col("row")).to_series().to_numpy()
    return found


def _microseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
