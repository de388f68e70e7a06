"""Kafka, by kafka-python. The one module that knows it: reading to the end, producing, and dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from features.events import Records
from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings

if TYPE_CHECKING:
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

T = TypeVar("T")

# It reports its own orderly closing as errors. What matters to a caller is raised.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

MAX_BATCH_ROWS = 100_000
POLL_MS = 500
STALLED_POLLS = 60
MAX_DEAD_LETTER_BYTES = 900_000


@dataclass(frozen=True)
class Batch:
    """Records of one topic, and the positions that follow them.

    Attributes:
        records: the records.
        offsets: next position by partition, for each partition that moved.
    """

    records: Records
    offsets: Mapping[int, int]


@contextmanager
def _reaching(settings: Settings) -> Iterator[None]:
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


def _open(client: Callable[..., T], settings: Settings, **ours: Any) -> T:
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


@contextmanager
def open_consumer(settings: Settings) -> Iterator[KafkaConsumer]:
    """A consumer without a group: partitions are assigned by hand, positions come from the lake.

    Raises:
        UnreachableError: no broker answers.
    """
    from kafka import KafkaConsumer

    with _reaching(settings):
        consumer = _open(
            KafkaConsumer,
            settings,
            enable_auto_commit=False,
            # A position that expires while it is read must not become the newest one without a word.
            auto_offset_reset="none",
            fetch_max_bytes=32 << 20,
            max_partition_fetch_bytes=8 << 20,
        )
        try:
            yield consumer
        finally:
            consumer.close(autocommit=False)


def read_to_end(
    consumer: KafkaConsumer, topic: str, positions: Mapping[int, int], max_rows: int = MAX_BATCH_ROWS
) -> Iterator[Batch]:
    """Records of a topic from the given positions up to where its partitions end now, in bounded batches.

    Args:
        consumer: from `open_consumer`.
        topic: a topic; one that does not exist yet holds nothing.
        positions: next position by partition; a partition that is not named starts at its beginning.
        max_rows: most records of a batch.

    Raises:
        StateError: the broker no longer has the records at a position (expired, or another broker's data).
    """
    from kafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

    partitions = _partitions(consumer, topic)
    for partition in set(positions) - {tp.partition for tp in partitions}:
        if positions[partition]:
            raise StateError(
                f"{topic}[{partition}]: the lake has read up to {positions[partition]}, but the broker has no such "
                "partition; this is another broker's data. Point PERENNIAL_KAFKA_BOOTSTRAP_SERVERS at the right broker, "
                "or start with a new PERENNIAL_HOME"
            )
    if not partitions:
        return
    ends = consumer.end_offsets(partitions)
    starts = _starts(consumer, partitions, positions, ends)
    behind = [tp for tp in partitions if starts[tp] < ends[tp]]
    if not behind:
        return
    consumer.assign(behind)
    for tp in behind:
        consumer.seek(tp, starts[tp])
    rows: list[tuple[int, int, bytes | None, bytes | None]] = []
    stalled = 0
    while any(consumer.position(tp) < ends[tp] for tp in behind):
        try:
            polled = consumer.poll(timeout_ms=POLL_MS, max_records=max_rows - len(rows))
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise StateError(
                f"{topic}: records expired in the broker while they were read ({error!r}); run again to see which are left"
            ) from error
        stalled = 0 if polled else stalled + 1
        if stalled > STALLED_POLLS:
            raise UnreachableError(
                f"{topic}: the broker has sent nothing for {STALLED_POLLS * POLL_MS / 1000:.0f} s; is it up?"
            )
        for tp, fetched in polled.items():
            rows.extend((tp.partition, r.offset, r.key, r.value) for r in fetched if r.offset < ends[tp])
        if len(rows) >= max_rows:
            yield Batch(Records.of(rows), _positions(consumer, behind, ends))
            rows = []
    # Positions can move past records that no reader sees (transaction markers), so the last batch may be empty.
    yield Batch(Records.of(rows), _positions(consumer, behind, ends))


def _partitions(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    from kafka import TopicPartition

    return [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]


def _starts(
    consumer: KafkaConsumer,
    partitions: Sequence[TopicPartition],
    positions: Mapping[int, int],
    ends: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    beginnings = consumer.beginning_offsets(partitions)
    starts = {}
    for tp in partitions:
        start = positions.get(tp.partition, beginnings[tp])
        if not beginnings[tp] <= start <= ends[tp]:
            raise StateError(
                f"{tp.topic}[{tp.partition}]: the lake has read up to {start}, but the broker holds "
                f"{beginnings[tp]} to {ends[tp]}; this is another broker's data or records have expired. "
                "Point PERENNIAL_KAFKA_BOOTSTRAP_SERVERS at the right broker, or start with a new PERENNIAL_HOME"
            )
        starts[tp] = start
    return starts


def _positions(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition], ends: Mapping[TopicPartition, int]
) -> dict[int, int]:
    return {tp.partition: min(consumer.position(tp), ends[tp]) for tp in partitions}


@contextmanager
def open_producer(settings: Settings) -> Iterator[KafkaProducer]:
    """A producer that waits for every replica; everything sent has arrived when the block ends.

    Raises:
        UnreachableError: no broker answers.
    """
    from kafka import KafkaProducer

    with _reaching(settings):
        producer = _open(
            KafkaProducer, settings, acks="all", linger_ms=20, batch_size=256 << 10, compression_type="lz4"
        )
        lost: list[Exception] = []
        sent = 0
        send = producer.send

        def send_noting_loss(*arguments: Any, **named: Any) -> Any:
            nonlocal sent
            if lost:
                raise _did_not_arrive(settings, lost, sent)
            sent += 1
            return send(*arguments, **named).add_errback(lost.append)

        # A send that fails later fails in its future alone: flush() returns as if everything had arrived.
        producer.send = send_noting_loss
        try:
            yield producer
            producer.flush()
        finally:
            producer.close(timeout=10)
        if lost:
            raise _did_not_arrive(settings, lost, sent)


def _did_not_arrive(settings: Settings, lost: Sequence[Exception], sent: int) -> UnreachableError:
    return UnreachableError(
        f"{len(lost)} of {sent} records did not arrive at {settings.kafka_bootstrap_servers} ({lost[0]}); "
        "see whether the broker is up, then run again"
    )


def ensure_topics(settings: Settings, topics: Iterable[str], partitions: int = 1) -> None:
    """Create the topics that do not exist yet."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with _reaching(settings):
        admin = _open(KafkaAdminClient, settings)
        try:
            existing = set(admin.list_topics())
            for topic in topics:
                if topic not in existing:
                    try:
                        admin.create_topics([NewTopic(topic, partitions, 1)])
                    except TopicAlreadyExistsError:
                        continue
        finally:
            admin.close()


def send_dead_letters(producer: KafkaProducer, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put each dead letter on its topic's `.dlq`, with where it came from and why as headers.

    A value that would not fit into a record with them is cut; the lake's copy is whole.
    """
    for row in rows:
        headers = [
            ("perennial.reason", str(row["reason"]).encode()),
            ("perennial.source", f"{row['topic']}[{row['kafka_partition']}]@{row['kafka_offset']}".encode()),
        ]
        key, value = row["key"], row["value"]
        if value is not None and len(value) > MAX_DEAD_LETTER_BYTES:
            headers.append(("perennial.whole-bytes", str(len(value)).encode()))
            value = value[:MAX_DEAD_LETTER_BYTES]
        # A record must have a key or a value; the tombstone that has neither becomes an empty value.
        producer.send(f"{row['topic']}.dlq", key=key, value=b"" if key is value is None else value, headers=headers)
