"""Feast, imported in one second instead of five. Whatever uses Feast imports it from here.

Every run of a flow is a process of its own, so import time is paid with each. Two thirds of Feast's go into typeguard,
which rewrites Feast's classes to check the types of every call, and a quarter into torch, which Feast imports for a
return type that is not used here. While it is imported, another thread that imports torch is told it is not installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import prometheus_client  # noqa: F401 - before Feast: where metrics are kept is decided when it is imported
import typeguard

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def _light() -> Iterator[None]:
    def as_it_is(target: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
        return target if target is not None else as_it_is

    instrument, torch_is_absent = typeguard.typechecked, "torch" not in sys.modules
    typeguard.typechecked = as_it_is  # type: ignore[assignment]
    if torch_is_absent:
        # Makes `import torch` fail, which Feast takes for "not installed".
        sys.modules["torch"] = None  # type: ignore[assignment]
    told = os.environ.get(METRICS_FOLDER)
    try:
        yield
    finally:
        typeguard.typechecked = instrument
        # Feast names a folder there, in which from then on this process and its children would keep their metrics.
        if told is None:
            os.environ.pop(METRICS_FOLDER, None)
        if torch_is_absent:
            del sys.modules["torch"]


with _light():
    import feast
    import feast.types
    from feast.infra.data_sources.contrib.iceberg_catalog.iceberg_source import IcebergSource
    from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
    from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
    from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
    from feast.infra.registry.file import FileRegistryStore
    from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Map, Value

__all__ = [
    "DataSourceProto",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "EntityKey",
    "FileRegistryStore",
    "IcebergSource",
    "Map",
    "RetrievalJob",
    "RetrievalMetadata",
    "SqliteOnlineStore",
    "SqliteOnlineStoreConfig",
    "Value",
    "deserialize_entity_key",
    "feast",
    "serialize_entity_key",
]
