"""Feast's Iceberg source, read at the snapshot and range that a training set pins.

Feast finds this class by its path, which is stored in its registry, and imports Feast on the way; that is why it has a
module of its own.
"""

from __future__ import annotations

import json
from typing import Any

from feast.infra.data_sources.contrib.iceberg_catalog.iceberg_source import IcebergSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto

from features.store import PinnedCatalog


class LakeSource(IcebergSource):
    """An Iceberg source that Feast reads through `features.store.PinnedCatalog`."""

    def get_catalog_client(self) -> PinnedCatalog:
        """The catalog, pinned by the join that is under way."""
        return PinnedCatalog(self.endpoint, self.warehouse)

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
            endpoint=options["endpoint"],
            warehouse=options["warehouse"],
            namespace=options["namespace"],
            table=options["table"],
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
        )
