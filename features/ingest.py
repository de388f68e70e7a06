"""One micro-batch of the stream: Kafka -> lake -> features -> online store. Each step goes on where the last commit ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from features import windows
from features.avro import WriterSchemas
from features.consumer import ensure_topics, open_consumer, open_producer, read_to_end, send_dead_letters
from features.events import decode, events_schema
from features.lake import Lake
from features.store import view_table, write_online
from perennial.settings import Settings
from pipelines.spec import EventSpec, FeatureView, PipelineSpec

DEAD_LETTERS = "dead_letters"
DEAD_LETTER_KEY = ("topic", "kafka_partition", "kafka_offset")
SOURCE_SNAPSHOT = "perennial.source-snapshot"


@dataclass(frozen=True)
class TopicIngest:
    """What one run took from a topic.

    Attributes:
        topic: the topic.
        ingested: records that became events in the lake.
        dead_lettered: records that did not, each with its reason.
    """

    topic: str
    ingested: int
    dead_lettered: int


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


def ingest_topic(settings: Settings, lake: Lake, event: EventSpec, created: datetime) -> TopicIngest:
    """Take in every record of a topic that the lake does not hold yet.

    Args:
        created: the run's clock, UTC.

    Raises:
        UnreachableError: no broker answers.
        ConflictError: another ingest committed in between; the next run goes on from there.
    """
    schemas = WriterSchemas(event.avro_schemas, settings.schema_registry_url) if event.encoding == "avro" else None
    ingested = dead_lettered = 0
    with open_consumer(settings) as consumer:
        positions: Mapping[int, int] = lake.offsets(event.table)
        for batch in read_to_end(consumer, event.topic, positions):
            decoded = decode(batch.records, event, created, schemas=schemas)
            # Dead letters first: killed in between, they are found again and known by topic, partition and offset.
            keep_dead_letters(settings, lake, decoded.dead_letters)
            positions = lake.append(event.table, decoded.events, batch.offsets, read_from=positions).offsets
            ingested += decoded.events.height
            dead_lettered += decoded.dead_letters.height
    if not ingested and not lake.exists(event.table):
        lake.append(event.table, pl.DataFrame(schema=events_schema(event)))
    return TopicIngest(event.topic, ingested, dead_lettered)


def keep_dead_letters(settings: Settings, lake: Lake, letters: pl.DataFrame) -> None:
    """Keep dead letters in the lake, each once, and on their topic's `.dlq`, each at least once."""
    if not letters.height:
        return
    if lake.exists(DEAD_LETTERS):
        letters = letters.join(lake.read(DEAD_LETTERS, columns=DEAD_LETTER_KEY), on=DEAD_LETTER_KEY, how="anti")
    if not letters.height:
        return
    ensure_topics(settings, {f"{topic}.dlq" for topic in letters.get_column("topic").unique()})
    with open_producer(settings) as producer:
        send_dead_letters(producer, letters.iter_rows(named=True))
    lake.append(DEAD_LETTERS, letters, partition_by=None)


def refresh_view(settings: Settings, lake: Lake, spec: PipelineSpec, view: FeatureView) -> ViewRefresh:
    """Bring a feature view up to the events in the lake, late ones included.

    The feature table says which snapshot of the events it was built from, in the same commit as its rows.

    Returns:
        What was added. Nothing new in the lake: nothing is done.
    """
    event = spec.event(view.topic)
    source = lake.snapshot_id(event.table)
    table = view_table(view)
    built_from = lake.property(table, SOURCE_SNAPSHOT)
    if source is None or built_from == str(source):
        return ViewRefresh(view.name, 0, 0)
    rows = build_new_features(lake, view, event, int(built_from) if built_from else None)
    # Online first: killed in between, the rows are built and written once more, and the online store takes them again.
    online_keys = write_online(spec, settings, view, rows)
    lake.append(table, rows, properties={SOURCE_SNAPSHOT: str(source)})
    return ViewRefresh(view.name, rows.height, online_keys)


def build_new_features(lake: Lake, view: FeatureView, event: EventSpec, built_from: int | None) -> pl.DataFrame:
    """Feature rows that the events after snapshot `built_from` add or correct (None: all of them)."""
    new = lake.appended_since(event.table, built_from)
    if built_from is None or not new.height or new.height == lake.rows(event.table):
        return windows.build_features(new, view, event)
    first = new.get_column(event.event_timestamp).min()
    if not isinstance(first, datetime):
        raise TypeError(f"{event.topic}: event time is {first!r}")
    touched = new.get_column(view.key).unique()
    reach = windows.lookback(view)
    around = lake.read(event.table, since=first - reach).filter(pl.col(view.key).is_in(touched.implode()))
    place = ["kafka_partition", "kafka_offset"]
    marked = around.join(new.select(*place, pl.lit(True).alias(windows.IS_NEW)), on=place, how="left").with_columns(
        pl.col(windows.IS_NEW).fill_null(value=False)
    )
    return windows.build_features(marked, view, event)
