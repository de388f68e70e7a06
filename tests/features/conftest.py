from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from new_pipeline import spec as spec  # a fixture
from redis_server import redis_server as redis_server  # a fixture

from features.lake import Lake
from perennial.settings import Settings
from pipelines.spec import PipelineSpec


@pytest.fixture
def kafka_settings(broker: Any, tmp_path: Path) -> Settings:
    """State of its own on the session's broker."""
    return Settings(home=tmp_path, kafka_bootstrap_servers=broker.address)


@pytest.fixture
def lake(kafka_settings: Settings, spec: PipelineSpec) -> Lake:
    return Lake(kafka_settings, spec.name)


@pytest.fixture(scope="session")
def make_topic(broker: Any) -> Callable[[str, int], None]:
    def make(topic: str, partitions: int = 1) -> None:
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        admin.create_topics([NewTopic(topic, partitions, 1)])
        admin.close()

    return make


@pytest.fixture(scope="session")
def produce(broker: Any) -> Callable[[str, Mapping[int, Iterable[bytes | None]]], None]:
    """Put values on a topic's partitions, in order, in batches of its own making."""

    def send(topic: str, values: Mapping[int, Iterable[bytes | None]]) -> None:
        producer = KafkaProducer(bootstrap_servers=broker.address, acks="all", linger_ms=5)
        sent = [
            producer.send(topic, partition=partition, key=b"k", value=value)
            for partition, some in values.items()
            for value in some
        ]
        producer.flush()
        for one in sent:
            one.get(10)
        producer.close()

    return send
