"""How fast Kafka becomes a lake and features: the year of flights, against a client that polls and drops, and Feast's push.

    python -m benchmarks.ingest [--json]

`events_per_s` is the whole way of an event into the lake: polled, decoded, marked, committed with its position.
`features_events_per_s` is the way on: every view built, written online and committed. `whole_...` is both, one after the
other: Feast's push only writes online. Peers run in the same process order, each in a process of its own.
"""

from __future__ import annotations

import importlib
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from benchmarks.running import alone, broker, quiet, scratch, tell
from perennial.settings import Settings

BEGIN, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 2, tzinfo=UTC)
SMALL_END = BEGIN + timedelta(days=38)
PUSHED_ROWS = 20_000
TIMES = 3


def produce(settings: Settings, end: datetime) -> int:
    """History up to `end` in the broker; how many records."""
    from features.replay import replay
    from pipelines.spec import load_pipeline

    return sum(replay(settings, load_pipeline("flights"), BEGIN, end).values())


def raw_poll(settings: Settings) -> float:
    """Seconds in which the same client polls every record and drops it; the fastest of three, as are all times here."""
    from features.consumer import POLL_ROWS, open_consumer, poll, start_positions
    from pipelines.spec import load_pipeline

    spec, best = load_pipeline("flights"), float("inf")
    for _ in range(TIMES):
        began = time.perf_counter()
        for event in spec.events:
            with open_consumer(settings) as consumer:
                starts = start_positions(consumer, event.topic, {})
                ends = consumer.end_offsets(list(starts))
                consumer.assign(list(starts))
                for tp, start in starts.items():
                    consumer.seek(tp, start)
                while any(consumer.position(tp) < ends[tp] for tp in starts):
                    poll(consumer, 500, POLL_ROWS)
        best = min(best, time.perf_counter() - began)
    return best


def ingest(settings: Settings, home: Path) -> tuple[int, float, float]:
    """Events taken in, seconds into the lake, seconds from there into features, offline and online."""
    from features.ingest import ingest_topics, refresh_view
    from features.lake import Lake
    from pipelines.spec import load_pipeline

    # Everything is imported before the clock starts, as it is for the peers.
    for module in (
        "features.feast_lake",
        "features.feast_online",
        "pyiceberg.catalog.sql",
        "pyiceberg.io.pyarrow",
        "kafka",
    ):
        importlib.import_module(module)
    spec = load_pipeline("flights")
    where = settings.model_copy(update={"home": home})
    lake, now = Lake(where, spec.name), datetime.now(UTC)
    began = time.perf_counter()
    events = sum(topic.ingested for topic in ingest_topics(where, lake, spec.events, now))
    in_lake = time.perf_counter()
    for view in spec.views:
        refresh_view(where, lake, spec, view)
    return events, in_lake - began, time.perf_counter() - in_lake


def feast_push(home: Path) -> float:
    """Departures a second that Feast's push takes to its own SQLite online store.

    Into views like the pipeline's two of departures, with made-up values: Feast works none out. It writes each row, where
    perennial writes the newest of each key.
    """
    import feast
    from feast.data_source import PushMode, PushSource
    from feast.infra.offline_stores.file_source import FileSource

    from pipelines.flights.events import DEPARTED, replay

    home.mkdir()
    delay = pl.col("departure_delay_min")
    frame = replay(BEGIN, END)[DEPARTED.topic].select(
        "origin", "carrier", "event_timestamp", origin_mean=delay, origin_count=delay.abs(), carrier_mean=-delay
    )
    frame.head(1).write_parquet(home / "offline.parquet")
    offline = FileSource(path=str(home / "offline.parquet"), timestamp_field="event_timestamp", name="offline")
    pushed = PushSource(name="pushed", batch_source=offline)
    entities = {
        name: feast.Entity(name=name, join_keys=[name], value_type=feast.ValueType.STRING)
        for name in ("origin", "carrier")
    }
    views = [
        feast.FeatureView(
            name=f"{entity}_traffic",
            entities=[entities[entity]],
            ttl=timedelta(days=1),
            schema=[feast.Field(name=name, dtype=feast.types.Float64) for name in names],
            source=pushed,
        )
        for entity, names in (("origin", ("origin_mean", "origin_count")), ("carrier", ("carrier_mean",)))
    ]
    store = feast.FeatureStore(
        config=feast.RepoConfig(
            project="push",
            provider="local",
            registry=str(home / "registry.db"),
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            entity_key_serialization_version=3,
            repo_path=home,
        )
    )
    store.apply([*entities.values(), *views])
    rows = frame.head(PUSHED_ROWS).to_pandas()
    began = time.perf_counter()
    store.push("pushed", rows, to=PushMode.ONLINE)
    return PUSHED_ROWS / (time.perf_counter() - began)


def measure(root: Path) -> dict[str, float | int]:
    """Every figure."""
    with broker(root / "small") as settings:
        produce(settings, SMALL_END)
        small = alone(ingest, settings, root / "small-lake")
    with broker(root / "whole") as settings:
        records = produce(settings, END)
        raw_s = alone(raw_poll, settings).result
        runs = [alone(ingest, settings, root / f"lake-{number}") for number in range(TIMES)]
        push = alone(feast_push, root / "push").result
    events = runs[0].result[0]
    if events != records:
        raise SystemExit(f"{events} events were ingested of {records} produced")
    lake_s = min(run.result[1] for run in runs)
    features_s = min(run.result[2] for run in runs)
    return {
        "events": events,
        "events_per_s": round(events / lake_s),
        "raw_poll_per_s": round(events / raw_s),
        "ratio_to_raw": round(raw_s / lake_s, 3),
        "features_events_per_s": round(events / features_s),
        "whole_events_per_s": round(events / (lake_s + features_s)),
        "whole_ratio_to_raw": round(raw_s / (lake_s + features_s), 3),
        "feast_push_rows_per_s": round(push),
        "ratio_to_feast_push": round(events / lake_s / push, 1),
        "whole_ratio_to_feast_push": round(events / (lake_s + features_s) / push, 1),
        "events_small": small.result[0],
        "peak_rss_mb_small": small.peak_rss_mb,
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
    }


if __name__ == "__main__":
    quiet()
    with scratch() as folder:
        tell(measure(folder))
