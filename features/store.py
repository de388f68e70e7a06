"""Feast: training frames point in time, and the newest values online. The one module that knows it.

The pipeline declares views (pipelines/spec.py); here they become Feast entities, Iceberg sources and feature views, with
their lineage as tags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, scan
from perennial.errors import StateError
from perennial.settings import Settings, settings
from pipelines.spec import FeatureView, PipelineSpec

if TYPE_CHECKING:
    import feast

ENTITY_KEY = "entity_key"
# To be raised when features/feast_lake.py is stored in another way, so that definitions are applied again.
SOURCE_VERSION = 2


def view_table(view: FeatureView) -> str:
    """The lake table that holds a view's values."""
    return f"features_{view.name}"


@dataclass(frozen=True)
class Pins:
    """Which lake, and what part of it, a point-in-time join reads.

    Attributes:
        lake: the lake's addresses. They may hold a password, so they are not in Feast's registry.
        snapshots: snapshot id by table; a table that is not named is read as it is now.
        since: first event time that can matter, or None.
        until: first event time that cannot, or None.
    """

    lake: Settings
    snapshots: Mapping[str, int] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None


_PINS: ContextVar[Pins] = ContextVar("perennial_pins")


@contextmanager
def _pinned(pins: Pins) -> Iterator[None]:
    token = _PINS.set(pins)
    try:
        yield
    finally:
        _PINS.reset(token)


class PinnedCatalog:
    """A catalog whose tables are read at the pinned snapshot and range. Feast's reader loads a table and scans all of it."""

    def load_table(self, name: str) -> PinnedCatalog:
        """The table, ready to be scanned."""
        try:
            self._pins = _PINS.get()
        except LookupError:  # somebody else's program uses Feast on the registry
            self._pins = Pins(settings())
        namespace, table = name.rsplit(".", 1)
        self._table = Lake(self._pins.lake, namespace).existing(table)
        return self

    def scan(self) -> Any:
        """The pinned part of the table."""
        pins = self._pins
        snapshot_id = pins.snapshots.get(self._table.name()[-1])
        return scan(self._table, pins.since, pins.until, snapshot_id=snapshot_id)

    def schema(self) -> Any:
        """The table's schema."""
        return self._table.schema()


def repo_config(spec: PipelineSpec, settings: Settings) -> feast.RepoConfig:
    """Feast's configuration for a pipeline: the lake offline; SQLite or Redis online."""
    from features.light_feast import feast

    folder = settings.feast_dir / spec.name
    online: dict[str, Any] = (
        {"type": "redis", "connection_string": settings.online_store_url.removeprefix("redis://")}
        if settings.online_store_url
        else {"type": "sqlite", "path": str(folder / "online.db")}
    )
    return feast.RepoConfig(
        project=spec.name,
        provider="local",
        registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
        offline_store={"type": "features.feast_lake.LakeOfflineStore"},
        online_store=online,
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def open_store(spec: PipelineSpec, settings: Settings) -> feast.FeatureStore:
    """The pipeline's feature store, its definitions applied if they changed since the last time."""
    from features.light_feast import feast

    folder = settings.feast_dir / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    known = (folder / "registry.db").exists()
    store = feast.FeatureStore(config=repo_config(spec, settings))
    applied = folder / "applied.json"
    told = [SOURCE_VERSION, str(settings.online_store_url), [v.model_dump() for v in spec.views]]
    # Only its hash is kept: the address may hold a password.
    definitions = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if not applied.exists() or applied.read_text() != definitions or not known:
        with _pinned(Pins(settings)):
            store.apply(feast_objects(spec))
        # Written last: a crash in between applies again, which changes nothing.
        applied.write_text(definitions)
    return store


def feast_objects(spec: PipelineSpec) -> list[Any]:
    """The pipeline's views as Feast entities and feature views."""
    from features.feast_lake import LakeSource
    from features.light_feast import feast

    entities = {
        v.entity: feast.Entity(name=v.entity, join_keys=[v.entity], value_type=feast.ValueType.STRING)
        for v in spec.views
    }
    views = [
        feast.FeatureView(
            name=view.name,
            entities=[entities[view.entity]],
            ttl=timedelta(seconds=view.ttl_s),
            schema=[
                feast.Field(name=a.name, dtype=feast.types.Float64, tags={"field": a.field, "function": a.function})
                for a in view.aggregates
            ],
            source=LakeSource(
                name=f"{spec.name}_{view.name}",
                catalog_type="sql",
                catalog_name="perennial",
                warehouse="by PERENNIAL_LAKE_WAREHOUSE",
                namespace=spec.name,
                table=view_table(view),
                timestamp_field=EVENT_TIMESTAMP,
                created_timestamp_column=CREATED_TIMESTAMP,
            ),
            tags={"topic": view.topic, "key": view.key},
        )
        for view in spec.views
    ]
    return [*entities.values(), *views]


def historical(
    spec: PipelineSpec, settings: Settings, scored: pl.DataFrame, snapshots: Mapping[str, int]
) -> pl.DataFrame:
    """Feature rows as they were known at each scored event: Feast's point-in-time join.

    Args:
        spec: the pipeline.
        settings: where the lake is.
        scored: scored events, in their event's schema.
        snapshots: snapshot id by feature table; tables that are not named are read as they are now.

    Returns:
        One row a scored event, in order: `entity_key`, `event_timestamp` and the model's inputs.

    Raises:
        StateError: a view's table is not in the lake yet, or a snapshot no longer.
    """
    rows = _request_rows(spec, scored).with_row_index("_row")
    if not rows.height or not spec.views:
        nothing = (pl.lit(None, dtype=pl.Float64).alias(name) for name in _streamed(spec))
        return rows.with_columns(nothing).select(ENTITY_KEY, EVENT_TIMESTAMP, *spec.feature_names)
    times = rows.get_column(EVENT_TIMESTAMP)
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        raise StateError(f"{spec.name}: scored events without an event time cannot be joined to features")
    reach = timedelta(seconds=max(v.ttl_s for v in spec.views))
    store = open_store(spec, settings)
    keys = sorted({v.entity for v in spec.views})
    entities = scored.select(pl.col(key).cast(pl.String) for key in keys).with_row_index("_row").with_columns(times)
    with _pinned(Pins(settings, snapshots, since=first - reach, until=last + timedelta(microseconds=1))):
        joined = store.get_historical_features(
            entity_df=entities.to_pandas(),
            features=[f"{v.name}:{a.name}" for v in spec.views for a in v.aggregates],
        ).to_arrow()
    streamed = pl.DataFrame(joined).select(pl.col("_row").cast(pl.UInt32), *_streamed(spec))
    return rows.join(streamed, on="_row", how="left", maintain_order="left").select(
        ENTITY_KEY, EVENT_TIMESTAMP, *spec.feature_names
    )


def write_online(spec: PipelineSpec, settings: Settings, view: FeatureView, rows: pl.DataFrame) -> int:
    """Bring a view's newest values online: one row a key, and never an older value over a newer one.

    Args:
        rows: feature rows from `build_features`, in any order.

    Returns:
        How many keys were written.
    """
    newest = rows.sort(EVENT_TIMESTAMP, CREATED_TIMESTAMP).unique([view.entity], keep="last", maintain_order=True)
    if not newest.height:
        return 0
    store = open_store(spec, settings)
    table = store.get_feature_view(view.name)
    online = _read_online(store, table, view, newest.get_column(view.entity).to_list())
    known = pl.Series([at for at, _ in online], dtype=pl.Datetime("us", "UTC"))
    fresh = newest.filter(known.is_null() | (known <= newest.get_column(EVENT_TIMESTAMP)))
    if fresh.height:
        _write_online(store, table, view, fresh)
    return fresh.height


class OnlineFeatures:
    """The newest feature values, for requests."""

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        self.spec = spec
        self._store = open_store(spec, settings)
        # Looked up once: reading a view from the registry costs a millisecond, the values a tenth of one.
        self._views = {view.name: self._store.get_feature_view(view.name) for view in spec.views}

    def frame(self, scored: pl.DataFrame) -> pl.DataFrame:
        """The model's inputs for scored events, as of now.

        A value counts unless it is older than its view's time to live at the event's time.

        Args:
            scored: scored events, in their event's schema.

        Returns:
            One row an event, in order: `entity_key`, `event_timestamp` and the model's inputs.
        """
        rows = _request_rows(self.spec, scored)
        times = rows.get_column(EVENT_TIMESTAMP).to_list()
        columns: dict[str, pl.Series] = {}
        for view in self.spec.views:
            keys = scored.get_column(view.entity).cast(pl.String).to_list()
            values = _read_online(self._store, self._views[view.name], view, keys)
            oldest = timedelta(seconds=view.ttl_s)
            alive = [
                found if at is not None and now - at <= oldest else {}
                for now, (at, found) in zip(times, values, strict=True)
            ]
            for aggregate in view.aggregates:
                name = aggregate.name
                columns[name] = pl.Series(name, [found.get(name) for found in alive], dtype=pl.Float64)
        return rows.with_columns(**columns).select(ENTITY_KEY, EVENT_TIMESTAMP, *self.spec.feature_names)


def _read_online(
    store: feast.FeatureStore, table: feast.FeatureView, view: FeatureView, keys: Sequence[str | None]
) -> list[tuple[datetime | None, Mapping[str, float]]]:
    """(event time, values) of each key, in order; (None, {}) where there is nothing."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    asked = sorted({k for k in keys if k is not None})
    protos = [EntityKey(join_keys=[view.entity], entity_values=[Value(string_val=k)]) for k in asked]
    names = [a.name for a in view.aggregates]
    found: dict[str | None, tuple[datetime | None, Mapping[str, float]]] = {}
    answers = store._get_provider().online_read(store.config, table, protos, names) if asked else []
    for key, (at, values) in zip(asked, answers, strict=True):
        moment = (at.replace(tzinfo=UTC) if at.tzinfo is None else at) if at else None
        numbers = {n: v.double_val for n, v in (values or {}).items() if v.HasField("double_val")}
        found[key] = (moment, numbers)
    return [found.get(key, (None, {})) for key in keys]


def _write_online(store: feast.FeatureStore, table: feast.FeatureView, view: FeatureView, rows: pl.DataFrame) -> None:
    # Not by write_to_online_store: it passes over a frame without any value, and what was known before would stay.
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    data = [
        (
            EntityKey(join_keys=[view.entity], entity_values=[Value(string_val=row[view.entity])]),
            {a.name: Value() if row[a.name] is None else Value(double_val=row[a.name]) for a in view.aggregates},
            row[EVENT_TIMESTAMP],
            row[CREATED_TIMESTAMP],
        )
        for row in rows.iter_rows(named=True)
    ]
    store._get_provider().online_write_batch(store.config, table, data, None)


def _request_rows(spec: PipelineSpec, scored: pl.DataFrame) -> pl.DataFrame:
    """Key, event time, and what the event itself tells; streamed features are not in it."""
    event = spec.event(spec.scored.topic)
    own = spec.request_features(scored)
    if own.height != scored.height:
        raise StateError(
            f"{spec.name}: request_features made {own.height} rows of {scored.height}; it must keep rows and order"
        )
    return own.with_columns(
        scored.get_column(spec.scored.key).alias(ENTITY_KEY),
        scored.get_column(event.event_timestamp).alias(EVENT_TIMESTAMP),
    )


def _streamed(spec: PipelineSpec) -> list[str]:
    return [a.name for v in spec.views for a in v.aggregates]
