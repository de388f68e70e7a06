"""History as a live stream: a pipeline's historical events, produced to Kafka in the order in which they happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from features.broker import ensure_topics
from features.events import encode
from features.producer import open_producer
from perennial.settings import Settings
from pipelines.spec import PipelineSpec

SLICE = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Slice:
    """Records of one stretch of time, in event-time order.

    Attributes:
        until: end of the stretch (UTC).
        rows: `topic`, `event_timestamp`, `key` and `value` (bytes), sorted by event time.
    """

    until: datetime
    rows: pl.DataFrame


def merged(spec: PipelineSpec, start: datetime, end: datetime) -> pl.DataFrame:
    """The records of every topic in [start, end), in event-time order: `topic`, `event_timestamp`, `key`, `value`."""
    parts = []
    for topic, frame in spec.replay(start, end).items():
        event = spec.event(topic)
        parts.append(
            pl.DataFrame(
                {
                    "topic": pl.Series([topic] * frame.height, dtype=pl.String),
                    "event_timestamp": frame.get_column(event.event_timestamp),
                    "key": frame.get_column(event.partition_key).cast(pl.String).cast(pl.Binary),
                    "value": pl.Series(encode(frame, event), dtype=pl.Binary),
                }
            )
        )
    return pl.concat(parts).sort("event_timestamp", maintain_order=True)


def slices(spec: PipelineSpec, start: datetime, end: datetime, length: timedelta) -> Iterator[Slice]:
    """[start, end) as consecutive stretches, so that a year is never in memory as records."""
    at = start
    while at < end:
        until = min(at + length, end)
        yield Slice(until, merged(spec, at, until))
        at = until


def replay(
    settings: Settings,
    spec: PipelineSpec,
    start: datetime,
    end: datetime,
    speed: float | None = None,
    now: Callable[[], float] | None = None,
    sleep: Callable[[float], None] | None = None,
    on_slice: Callable[[datetime, int], None] | None = None,
) -> Mapping[str, int]:
    """Produce the historical events of [start, end) to their topics.

    Args:
        speed: how many times faster than real time; None: as fast as the broker takes them.
        now: seconds on a monotonic clock (tests pass their own).
        sleep: waits that many seconds (tests pass their own).
        on_slice: called with the event time reached and the records produced so far.

    Returns:
        Records produced by topic.

    Raises:
        UnreachableError: no broker answers.
    """
    import time

    now, sleep = now or time.monotonic, sleep or time.sleep
    produced = dict.fromkeys((e.topic for e in spec.events), 0)
    ensure_topics(settings, produced)
    began = now()
    with open_producer(settings) as producer:
        for part in slices(spec, start, end, SLICE if speed else DAY):
            for topic, at, key, value in part.rows.iter_rows():
                if speed:
                    wait = (at - start).total_seconds() / speed - (now() - began)
                    if wait > 0:
                        producer.flush()
                        sleep(wait)
                producer.send(topic, key=key, value=value)
                produced[topic] += 1
            producer.flush()
            if on_slice:
                on_slice(part.until, sum(produced.values()))
    return produced
