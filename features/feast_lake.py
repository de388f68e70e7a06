"""Feast on the lake: its Iceberg source read at pinned snapshots, and its DuckDB offline store with an as-of join.

Feast finds these classes by their paths, which are stored in its registry and configuration, and imports Feast on the
way; that is why they have a module of their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa

from features.lake import EVENT_TIMESTAMP
from features.light_feast import (
    DataSourceProto,
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    IcebergSource,
    RetrievalJob,
    RetrievalMetadata,
    feast,
)
from features.store import PinnedCatalog
from perennial.errors import UsageError

ROW = "_position"


class LakeSource(IcebergSource):
    """An Iceberg source that Feast reads through `features.store.PinnedCatalog`."""

    def get_catalog_client(self) -> PinnedCatalog:
        """The catalog, pinned by the join that is under way."""
        return PinnedCatalog()

    def _to_proto_impl(self) -> Any:
        proto = super()._to_proto_impl()
        # Of the Iceberg type, Feast would make a source of its own class again, which reads all of the newest snapshot.
        proto.type = DataSourceProto.CUSTOM_SOURCE
        proto.data_source_class_type = f"{LakeSource.__module__}.{LakeSource.__name__}"
        return proto

    @staticmethod
    def from_proto(data_source: Any) -> LakeSource:
        """The source that Feast's registry stored."""
        options = json.loads(data_source.custom_options.configuration)
        return LakeSource(
            name=data_source.name,
            catalog_type=options["catalog_type"],
            catalog_name=options["catalog_name"],
            warehouse=options["warehouse"],
            namespace=options["namespace"],
            table=options["table"],
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
        )


class LakeOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Feast's configuration of the store below; Feast looks for this name."""

    type: Literal["features.feast_lake.LakeOfflineStore"] = "features.feast_lake.LakeOfflineStore"


class LakeOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store, whose point-in-time join is an as-of join instead of one on inequalities."""

    @staticmethod
    def get_historical_features(
        config: Any,  # noqa: ARG004 - Feast's signature
        feature_views: list[feast.FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: Any,  # noqa: ARG004
        project: str,  # noqa: ARG004
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Each entity row with, of each view, the newest values not later than it and not older than the time to live.

        Of two values with the same key and time, the one made later counts.

        Args:
            feature_views: views whose sources are `LakeSource`s.
            feature_refs: `view:feature`.
            entity_df: `event_timestamp` (UTC) and the views' join keys.
            full_feature_names: name columns `view__feature`.
            filter_by_created_timestamp: not supported; pin snapshots instead.

        Raises:
            UsageError: the entities are SQL, or the filter is asked for.
        """
        if isinstance(entity_df, str) or filter_by_created_timestamp:
            raise UsageError(
                "the lake's offline store takes entities as a DataFrame, and pinned snapshots instead of "
                "filter_by_created_timestamp; pass a DataFrame with event_timestamp and the join keys"
            )
        entities = pl.from_pandas(entity_df).with_columns(pl.col(EVENT_TIMESTAMP).cast(pl.Datetime("us", "UTC")))
        joined = entities.with_row_index(ROW).sort(EVENT_TIMESTAMP, maintain_order=True)
        for view in feature_views:
            name = view.projection.name_to_use()
            wanted = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == name]
            joined = _join(joined, view, wanted, f"{name}__" if full_feature_names else "")
        times = entities.get_column(EVENT_TIMESTAMP)
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[c for c in entities.columns if c != EVENT_TIMESTAMP],
            min_event_timestamp=times.min(),
            max_event_timestamp=times.max(),
        )
        return JoinedFrame(joined.sort(ROW).drop(ROW), full_feature_names, metadata)


class JoinedFrame(RetrievalJob):
    """What Feast hands back: the joined frame, already computed."""

    def __init__(self, frame: pl.DataFrame, full_feature_names: bool, metadata: RetrievalMetadata) -> None:
        super().__init__()
        self._frame = frame
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are named `view__feature`."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """None: what an event tells by itself is computed from the event."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked for."""
        return self._metadata

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002 - Feast's signature
        return self._frame.to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._frame.to_arrow()

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:  # noqa: ARG002
        """Not supported: a training set is pinned by its snapshots and made again from them."""
        raise UsageError("a point-in-time frame is not saved; keep the lake's snapshot ids and build it again")


def _join(entities: pl.DataFrame, view: feast.FeatureView, wanted: Sequence[str], prefix: str) -> pl.DataFrame:
    source = view.batch_source
    keys = dict(view.projection.join_key_map) or {e.name: e.name for e in view.entity_columns}
    at, created = source.timestamp_field, source.created_timestamp_column
    table = source.get_catalog_client().load_table(f"{source.namespace}.{source.iceberg_table}").scan().to_arrow()
    values = (
        pl.DataFrame(table)
        .select(*keys, at, created, *wanted)
        .sort(at, created)
        .unique([*keys, at], keep="last", maintain_order=True)
        .select(
            *(pl.col(own).alias(theirs) for own, theirs in keys.items()),
            pl.col(at).alias(EVENT_TIMESTAMP),
            *(pl.col(name).alias(prefix + name) for name in wanted),
        )
    )
    # Both sides were sorted by time just above; Polars cannot see that within the groups.
    return entities.join_asof(
        values, on=EVENT_TIMESTAMP, by=list(keys.values()), tolerance=view.ttl or None, check_sortedness=False
    )
