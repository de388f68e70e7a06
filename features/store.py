"""Feast: training frames point in time, and the newest values online. The one module that knows it.

The pipeline declares views (pipelines/spec.py); here they become Feast entities, Iceberg sources and feature views, with
their lineage as tags.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import polars as pl
from pydantic import SecretStr

from features import lineage
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, scan
from features.lineage import FeatureLineage
from perennial.errors import StateError
from perennial.settings import Settings, settings
from perennial.wording import counted
from pipelines.spec import FeatureView, PipelineSpec

if TYPE_CHECKING:
    import feast

    from features.feast_online import NewestOnlineStore

ENTITY_KEY = "entity_key"
# To be raised when features/feast_*.py store something in another way, so that definitions are applied again.
SOURCE_VERSION = 3
REGISTRY_FILE = "registry.db"
ONLINE_FILE = "online.db"


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
        {
            "type": "features.feast_redis.NewestRedisOnlineStore",
            "url": SecretStr(settings.online_store_url),
            "secret_arn": settings.online_store_secret_arn,
        }
        if settings.online_store_url
        else {"type": "features.feast_online.NewestSqliteOnlineStore", "path": str(folder / ONLINE_FILE)}
    )
    return feast.RepoConfig(
        project=spec.name,
        provider="local",
        registry={
            "registry_type": "file",
            "registry_store_type": "features.feast_online.AtomicRegistryStore",
            "path": str(folder / REGISTRY_FILE),
            "cache_ttl_seconds": 0,
        },
        offline_store={"type": "features.feast_lake.LakeOfflineStore"},
        online_store=online,
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def open_store(spec: PipelineSpec, settings: Settings) -> feast.FeatureStore:
    """The pipeline's feature store, its definitions applied if they or the code changed since the last time."""
    from features.light_feast import feast

    folder = settings.feast_dir / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    config = repo_config(spec, settings)
    # Only its hash is kept: the address of the online store may hold a password.
    told = [
        SOURCE_VERSION,
        lineage.code_version(spec.name),
        config.online_store.type,
        settings.online_store_url or str(folder),
        [v.model_dump() for v in spec.views],
    ]
    definitions = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    applied = folder / "applied.json"
    made = [folder / REGISTRY_FILE, *(() if settings.online_store_url else [folder / ONLINE_FILE])]
    # Of two processes the second finds the work done; both at once would each replace what the other registered.
    with (folder / "apply.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store = feast.FeatureStore(config=config)
        if not applied.exists() or applied.read_text() != definitions or not all(path.exists() for path in made):
            with _pinned(Pins(settings)):
                store.apply(feast_objects(spec))
            # Written last: a crash in between applies again, which changes nothing.
            applied.write_text(definitions)
    return store


def applied_lineage(spec: PipelineSpec, settings: Settings) -> tuple[FeatureLineage, ...]:
    """Where each feature comes from, as Feast's registry says; nothing is applied for it.

    Raises:
        StateError: nothing was applied yet.
    """
    from features.light_feast import feast

    if not (settings.feast_dir / spec.name / REGISTRY_FILE).exists():
        raise StateError(f"no features of {spec.name} are registered yet; run `perennial ingest {spec.name}` first")
    views = feast.FeatureStore(config=repo_config(spec, settings)).list_feature_views()
    return tuple(
        lineage.from_tags(view.name, feature.name, {**view.tags, **feature.tags})
        for view in views
        for feature in view.features
    )


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
                feast.Field(name=of.feature, dtype=feast.types.Float64, tags=lineage.tags(of))
                for of in lineage.of_view(spec, view)
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
            tags=lineage.view_tags(spec, view),
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


class OnlineWriter:
    """A pipeline's online values, opened once, written and read by column; the store never puts an older row over a newer one."""

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        store = open_store(spec, settings)
        self._config = store.config
        self._views = {view.name: store.get_feature_view(view.name) for view in spec.views}
        self._store: NewestOnlineStore = store._get_provider().online_store

    def write(self, view: FeatureView, rows: pl.DataFrame) -> int:
        """Bring a view's newest values online.

        Of rows of one key the newest by (event time, created time) goes in, unless a newer one is there; all features
        of a key move together. Safe with several writers, and to be repeated.

        Args:
            view: one of the pipeline's views.
            rows: feature rows from `build_features`, in any order.

        Returns:
            How many keys were written.

        Raises:
            UnreachableError: Redis does not answer. Some keys may have been written, each whole.
            StateError: the store refused the rows.
        """
        # In order, so that of two rows of the same times the later one counts, as it does from one call to the next.
        ordered = rows.sort(EVENT_TIMESTAMP, CREATED_TIMESTAMP, maintain_order=True)
        newest = ordered.unique([view.entity], keep="last", maintain_order=True)
        return self._store.write_numbers(self._config, self._views[view.name], newest) if newest.height else 0

    def read(self, view: FeatureView, keys: Sequence[str]) -> pl.DataFrame:
        """What is online of these keys, in no order: key, `event_timestamp`, `created_timestamp` and the features."""
        return self._store.read_numbers(self._config, self._views[view.name], keys)

    def remove(self, view: FeatureView, rows: pl.DataFrame) -> int:
        """Take rows out that `read` told, each unless another one of its key is there by now; how many were taken out."""
        return self._store.remove_numbers(self._config, self._views[view.name], rows) if rows.height else 0

    def keys(self, view: FeatureView) -> Iterator[list[str]]:
        """Every key that is online, in batches; a key may be told twice."""
        return self._store.keys(self._config, self._views[view.name])


def write_online(spec: PipelineSpec, settings: Settings, view: FeatureView, rows: pl.DataFrame) -> int:
    """`OnlineWriter.write` once."""
    return OnlineWriter(spec, settings).write(view, rows) if rows.height else 0


# Event time (UTC), and the features that have a number.
OnlineRow: TypeAlias = tuple[datetime, Mapping[str, float]]


class OnlineRows(Protocol):
    """The newest values of a pipeline's views."""

    def read(self, asked: Sequence[tuple[FeatureView, Sequence[str]]]) -> Sequence[Mapping[str, OnlineRow]]:
        """What is online of these keys.

        Args:
            asked: views, each with different keys.

        Returns:
            One mapping a view, in order, of the keys that the store holds.
        """


class FeastRows:
    """`OnlineRows` as Feast reads them, out of whatever store."""

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        self._store = open_store(spec, settings)
        # Looked up once: reading a view from the registry costs a millisecond, the values a tenth of one.
        self._views = {view.name: self._store.get_feature_view(view.name) for view in spec.views}

    def read(self, asked: Sequence[tuple[FeatureView, Sequence[str]]]) -> list[dict[str, OnlineRow]]:
        """See `OnlineRows`."""
        return [self._of(view, keys) for view, keys in asked]

    def _of(self, view: FeatureView, keys: Sequence[str]) -> dict[str, OnlineRow]:
        from features.light_feast import EntityKey, Value

        protos = [EntityKey(join_keys=[view.entity], entity_values=[Value(string_val=k)]) for k in keys]
        names = [a.name for a in view.aggregates]
        provider = self._store._get_provider()
        answers = provider.online_read(self._store.config, self._views[view.name], protos, names) if protos else []
        return {
            key: (
                at.replace(tzinfo=UTC) if at.tzinfo is None else at,
                {n: v.double_val for n, v in (values or {}).items() if v.HasField("double_val")},
            )
            for key, (at, values) in zip(keys, answers, strict=True)
            if at is not None
        }


def online_rows(spec: PipelineSpec, settings: Settings) -> OnlineRows:
    """The pipeline's online values. Redis is read without Feast, so that the scoring service's image needs none."""
    if not settings.online_store_url:
        return FeastRows(spec, settings)
    from features.redis_rows import RedisRows

    return RedisRows(spec, settings)


class OnlineFeatures:
    """The newest feature values, for requests."""

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        self.spec = spec
        self._rows = online_rows(spec, settings)

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
        keys = [scored.get_column(view.entity).cast(pl.String).to_list() for view in self.spec.views]
        found = self._rows.read([(v, sorted({*some} - {None})) for v, some in zip(self.spec.views, keys, strict=True)])
        columns: dict[str, pl.Series] = {}
        for view, of_row, held in zip(self.spec.views, keys, found, strict=True):
            oldest = timedelta(seconds=view.ttl_s)
            rows_held = (held.get(key) for key in of_row)
            alive = [
                row[1] if row and now - row[0] <= oldest else {} for now, row in zip(times, rows_held, strict=True)
            ]
            for aggregate in view.aggregates:
                name = aggregate.name
                columns[name] = pl.Series(name, [values.get(name) for values in alive], dtype=pl.Float64)
        return rows.with_columns(**columns).select(ENTITY_KEY, EVENT_TIMESTAMP, *self.spec.feature_names)


def _request_rows(spec: PipelineSpec, scored: pl.DataFrame) -> pl.DataFrame:
    """Key, event time, and what the event itself tells; streamed features are not in it."""
    event = spec.event(spec.scored.topic)
    own = spec.request_features(scored)
    if own.height != scored.height:
        raise StateError(
            f"{spec.name}: request_features made {counted(own.height, 'row')} of {scored.height}; it must keep rows and order"
        )
    return own.with_columns(
        scored.get_column(spec.scored.key).alias(ENTITY_KEY),
        scored.get_column(event.event_timestamp).alias(EVENT_TIMESTAMP),
    )


def _streamed(spec: PipelineSpec) -> list[str]:
    return [a.name for v in spec.views for a in v.aggregates]
