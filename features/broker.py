"""The Kafka broker, by kafka-python: clients with the user's options, its errors in our words, its topics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings

T = TypeVar("T")
# Of partitions and of replicas: a cluster over three zones keeps three, one broker keeps one.
BROKERS_DEFAULT = -1

# It reports its own orderly closing as errors. What matters to a caller is raised.
logging.getLogger("kafka").setLevel(logging.CRITICAL)


def load() -> None:
    """Import kafka-python now, for those who are about to use it in threads."""
    import kafka  # noqa: F401


@contextmanager
def reaching(settings: Settings) -> Iterator[None]:
    """What kafka-python raises within the block, as our errors.

    Raises:
        UnreachableError: no broker answers.
        UsageError: the user's options cannot be used.
        StateError: the broker refused.
    """
    from kafka.errors import KafkaConfigurationError, KafkaConnectionError, KafkaError, KafkaTimeoutError

    try:
        yield
    except (KafkaConnectionError, KafkaTimeoutError) as error:
        raise UnreachableError(
            f"no Kafka broker answers at {settings.kafka_bootstrap_servers} ({type(error).__name__}); "
            "start one with `perennial up`, or set PERENNIAL_KAFKA_BOOTSTRAP_SERVERS"
        ) from error
    except KafkaConfigurationError as error:
        raise UsageError(f"PERENNIAL_KAFKA_OPTIONS cannot be used: {error}; correct them") from error
    except KafkaError as error:
        raise StateError(
            f"Kafka at {settings.kafka_bootstrap_servers} refused: {error!r}; see its log and PERENNIAL_KAFKA_OPTIONS"
        ) from error


def open_client(client: Callable[..., T], settings: Settings, **ours: Any) -> T:
    """A client for the broker; of what the user sets it takes what is meant for its kind, and that wins.

    Raises:
        UsageError: an address that is none, or an option that no client knows.
    """
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

    kinds = (KafkaAdminClient, KafkaConsumer, KafkaProducer)
    if unknown := set(settings.kafka_options).difference(*(kind.DEFAULT_CONFIG for kind in kinds)):
        raise UsageError(
            f"PERENNIAL_KAFKA_OPTIONS has {sorted(unknown)}, which kafka-python does not know; correct them"
        )
    own = client.DEFAULT_CONFIG  # type: ignore[attr-defined]
    options = {
        "bootstrap_servers": settings.kafka_bootstrap_servers.split(","),
        "bootstrap_timeout_ms": 5_000,
        **ours,
        **{key: value for key, value in settings.kafka_options.items() if key in own},
    }
    try:
        return client(**options)
    except ValueError as error:
        raise UsageError(
            f"PERENNIAL_KAFKA_BOOTSTRAP_SERVERS is {settings.kafka_bootstrap_servers!r}, or its options are not usable: "
            f"{error}; write host:port, several with commas between them"
        ) from error


@dataclass(frozen=True)
class TopicsFound:
    """What a broker tells of some topics, and lets read.

    Attributes:
        partitions: number of partitions by topic, of those that can be read.
        refused: of the others, Kafka's own word for why, such as UnknownTopicOrPartitionError.
    """

    partitions: Mapping[str, int]
    refused: Mapping[str, str]


def try_topics(settings: Settings, topics: Sequence[str], within_ms: int) -> TopicsFound:
    """Look for topics, and fetch from each; none is made, and no position is moved.

    Args:
        settings: where the broker is.
        topics: to look for; none = only see whether a broker answers.
        within_ms: after which a broker that says nothing counts as none.

    Raises:
        UnreachableError: no broker answers.
        UsageError: the user's options cannot be used.
        StateError: the broker refused.
    """
    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError, for_code

    with reaching(settings):
        admin = open_client(KafkaAdminClient, settings, bootstrap_timeout_ms=within_ms)
        try:
            # Unlike a consumer's question, this one makes no topic.
            told = admin.describe_topics(list(topics) or None)
        finally:
            admin.close()
        told = [topic for topic in told if topic["name"] in topics]
        partitions = {topic["name"]: len(topic["partitions"]) for topic in told if not topic["error_code"]}
        refused = {t["name"]: for_code(t["error_code"]).__name__ for t in told if t["error_code"]}
        for topic in list(partitions):
            # One consumer each: a topic that may not be read would hide the others.
            ours = {"enable_auto_commit": False, "group_id": None, "allow_auto_create_topics": False}
            consumer = open_client(KafkaConsumer, settings, bootstrap_timeout_ms=within_ms, **ours)
            try:
                place = TopicPartition(topic, 0)
                consumer.assign([place])
                consumer.seek(place, consumer.beginning_offsets([place])[place])
                consumer.poll(timeout_ms=300, max_records=1)
            except KafkaError as error:
                del partitions[topic]
                refused[topic] = type(error).__name__
            finally:
                consumer.close()
    return TopicsFound(partitions, refused)


def ensure_topics(settings: Settings, topics: Iterable[str], partitions: int = BROKERS_DEFAULT) -> None:
    """Create the topics that do not exist yet, with as many partitions and replicas as the broker gives where nobody says."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with reaching(settings):
        admin = open_client(KafkaAdminClient, settings)
        try:
            existing = set(admin.list_topics())
            for topic in topics:
                if topic not in existing:
                    try:
                        admin.create_topics([NewTopic(topic, partitions, BROKERS_DEFAULT)])
                    except TopicAlreadyExistsError:
                        continue
        finally:
            admin.close()
