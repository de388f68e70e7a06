"""How fast rows get their features as of their time: ours, Feast's file store, and a bare DuckDB as-of join.

    python -m benchmarks.training_set [--json]

50 k entity rows against 200 k feature rows of 10 features; then ours alone with 1 M and 5 M feature rows. Every time is the
fastest of three, from the request to a frame in memory, with the store open and its definitions known.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.running import alone, fastest, quiet, scratch, tell
from perennial.settings import Settings
from pipelines.spec import (
    Aggregate,
    EventField,
    EventSpec,
    Feature,
    FeatureView,
    LabelSpec,
    PipelineSpec,
    ScoredSpec,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAYS, CUSTOMERS, ENTITY_ROWS, FEATURE_ROWS, FEATURES = 30, 5_000, 50_000, 200_000, 10
NAMES = [f"customer_value_mean_{i}d" for i in range(1, FEATURES + 1)]
TIMES = 3
AT = EventField(name="event_timestamp", type="timestamp")
CUSTOMER = EventField(name="customer", type="string")
ASKED = EventSpec(
    topic="shop.asked.v1",
    fields=(EventField(name="order_id", type="string"), AT, CUSTOMER),
    event_timestamp="event_timestamp",
    event_id=("order_id",),
    partition_key="customer",
)
SEEN = EventSpec(
    topic="shop.seen.v1",
    fields=(EventField(name="visit", type="string"), AT, CUSTOMER, EventField(name="value", type="float")),
    event_timestamp="event_timestamp",
    event_id=("visit",),
    partition_key="customer",
)
VIEW = FeatureView(
    name="customer",
    entity="customer",
    topic=SEEN.topic,
    key="customer",
    aggregates=tuple(
        Aggregate(name=name, field="value", function="mean", window_s=day * 86_400) for day, name in enumerate(NAMES, 1)
    ),
    ttl_s=DAYS * 86_400,
)
SPEC = PipelineSpec(
    name="shop",
    description="made up, for this benchmark",
    events=(ASKED, SEEN),
    scored=ScoredSpec(topic=ASKED.topic, key="order_id"),
    label=LabelSpec(topic=ASKED.topic, key="order_id", value=lambda frame: frame["order_id"].is_null(), horizon_s=1),
    views=(VIEW,),
    request_features=lambda frame: frame.select("customer"),
    features=tuple(Feature(name=name, kind="numeric") for name in NAMES),
    contract=(),
    replay=lambda _, __: {},
)


def rows(count: int, seed: int) -> pl.DataFrame:
    """Customers at random moments of a month, to the microsecond."""
    dice = np.random.default_rng(seed)
    at = np.sort(dice.integers(0, DAYS * 86_400 * 10**6, count))
    return pl.DataFrame(
        {
            "customer": pl.Series(dice.integers(0, CUSTOMERS, count)).cast(pl.String),
            "event_timestamp": pl.Series(at) + int(T0.timestamp() * 10**6),
        }
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))


def feature_rows(count: int) -> pl.DataFrame:
    """Values of the view."""
    dice = np.random.default_rng(2)
    return rows(count, 1).with_columns(
        created_timestamp=pl.col("event_timestamp"), **{name: pl.Series(dice.normal(size=count)) for name in NAMES}
    )


def entity_rows() -> pl.DataFrame:
    """What is asked about."""
    asked = rows(ENTITY_ROWS, 3)
    return asked.with_columns(order_id=pl.Series(range(ENTITY_ROWS)).cast(pl.String)).select(list(ASKED.schema_))


def ours(home: Path, count: int) -> tuple[float, float]:
    """Seconds, and the sum of what was found."""
    from features.lake import Lake
    from features.store import historical, view_table

    settings = Settings(home=home)
    lake = Lake(settings, SPEC.name)
    commit = lake.append(view_table(VIEW), feature_rows(count))
    asked = entity_rows()
    snapshots = {view_table(VIEW): commit.snapshot_id}
    seconds, frame = fastest(TIMES, lambda: historical(SPEC, settings, asked, snapshots))
    return seconds, float(frame.select(pl.sum_horizontal(pl.col(NAMES).sum())).item())


def feast_file_store(home: Path) -> tuple[float, float]:
    """The same by Feast's own file source and its Dask store."""
    import feast
    from feast.infra.offline_stores.file_source import FileSource

    home.mkdir()
    feature_rows(FEATURE_ROWS).write_parquet(home / "features.parquet")
    customer = feast.Entity(name="customer", join_keys=["customer"], value_type=feast.ValueType.STRING)
    source = FileSource(
        path=str(home / "features.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    view = feast.FeatureView(
        name="customer",
        entities=[customer],
        ttl=timedelta(days=DAYS),
        schema=[feast.Field(name=name, dtype=feast.types.Float64) for name in NAMES],
        source=source,
    )
    store = feast.FeatureStore(
        config=feast.RepoConfig(
            project="shop",
            provider="local",
            registry=str(home / "registry.db"),
            offline_store={"type": "file"},
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            entity_key_serialization_version=3,
            repo_path=home,
        )
    )
    store.apply([customer, view])
    asked = entity_rows().to_pandas()
    wanted = [f"customer:{name}" for name in NAMES]
    seconds, frame = fastest(TIMES, lambda: store.get_historical_features(entity_df=asked, features=wanted).to_df())
    return seconds, float(frame[NAMES].sum().sum())


def bare_duckdb(home: Path) -> tuple[float, float]:
    """The same by one statement of DuckDB on a Parquet file: no store, no pins, no time to live."""
    import duckdb

    home.mkdir()
    path = home / "features.parquet"
    feature_rows(FEATURE_ROWS).write_parquet(path)
    asked = entity_rows().to_arrow()
    statement = (
        f"select a.*, {', '.join(f'f.{name}' for name in NAMES)} from asked a asof left join '{path}' f "
        "on a.customer = f.customer and a.event_timestamp >= f.event_timestamp"
    )

    def join() -> pl.DataFrame:
        connection = duckdb.connect()
        connection.register("asked", asked)
        return pl.DataFrame(connection.sql(statement).to_arrow_table())

    seconds, frame = fastest(TIMES, join)
    return seconds, float(frame.select(pl.sum_horizontal(pl.col(NAMES).sum())).item())


def measure(root: Path) -> dict[str, float | int]:
    """Every figure; what the three find must be the same."""
    here, there, bare = (
        alone(ours, root / "ours", FEATURE_ROWS),
        alone(feast_file_store, root / "feast"),
        alone(bare_duckdb, root / "duckdb"),
    )
    sums = [ran.result[1] for ran in (here, there, bare)]
    if max(sums) - min(sums) > 1e-6 * abs(sums[0]):
        raise SystemExit(f"they found different values: {sums}")
    figures = {
        "entity_rows": ENTITY_ROWS,
        "feature_rows": FEATURE_ROWS,
        "seconds": here.result[0],
        "feast_file_store_s": there.result[0],
        "times_faster_than_feast": there.result[0] / here.result[0],
        "bare_duckdb_asof_s": bare.result[0],
        "times_bare_duckdb": here.result[0] / bare.result[0],
        "peak_rss_mb": here.peak_rss_mb,
        "feast_peak_rss_mb": there.peak_rss_mb,
    }
    for millions in (1, 5):
        ran = alone(ours, root / f"ours-{millions}", millions * 10**6)
        figures[f"seconds_{millions}m"] = ran.result[0]
        figures[f"peak_rss_mb_{millions}m"] = ran.peak_rss_mb
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}


if __name__ == "__main__":
    quiet()
    with scratch() as folder:
        tell(measure(folder))
