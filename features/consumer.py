"""Reading Kafka: partitions are assigned by hand, positions come from the lake."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from features.broker import open_client, reaching
from features.records import Records
from perennial.errors import StateError, UnreachableError
from perennial.settings import Settings

if TYPE_CHECKING:
    from kafka import KafkaConsumer, TopicPartition

T = TypeVar("T")

MAX_BATCH_ROWS, MAX_BATCH_BYTES = 20_000, 32 << 20
MOST_AHEAD = 4
# kafka-python makes an object a record; taken apart a few at a time, the garbage collector has little to walk through.
POLL_ROWS, POLL_BYTES = 1_000, 8 << 20
# How large records are is known after the first few.
FIRST_POLL_ROWS = 20
POLL_MS = 500
STALLED_POLLS = 60


@dataclass(frozen=True)
class Batch:
    """Records of one topic, and the positions that follow them.

    Attributes:
        topic: the topic.
        records: the records.
        offsets: next position by partition, for each partition that moved.
    """

    topic: str
    records: Records
    offsets: Mapping[int, int]


@dataclass
class Columns:
    """Records of one topic that were polled so far."""

    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    size: int = 0

    def add(self, partition: int, fetched: Sequence[Any]) -> None:
        """Add kafka-python's records of a partition."""
        self.partitions.extend([partition] * len(fetched))
        self.offsets.extend([record.offset for record in fetched])
        self.keys.extend([record.key for record in fetched])
        values = [record.value for record in fetched]
        self.values.extend(values)
        self.size += sum(map(len, filter(None, values)))

    def __len__(self) -> int:
        return len(self.values)

    def records(self) -> Records:
        """As they are now."""
        return Records.of_columns(self.partitions, self.offsets, self.keys, self.values)


@contextmanager
def open_consumer(settings: Settings, group: str | None = None) -> Iterator[KafkaConsumer]:
    """A consumer whose partitions are assigned by hand.

    Args:
        group: under which `tell_positions` tells the broker what was consumed; nothing is read from it.

    Raises:
        UnreachableError: no broker answers.
    """
    from kafka import KafkaConsumer

    with reaching(settings):
        consumer = open_client(
            KafkaConsumer,
            settings,
            group_id=group,
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
        UnreachableError: the broker has sent nothing for half a minute.
    """
    starts = start_positions(consumer, topic, positions)
    if not starts:
        return
    ends = consumer.end_offsets(list(starts))
    behind = [tp for tp, start in starts.items() if start < ends[tp]]
    if not behind:
        return
    consumer.assign(behind)
    for tp in behind:
        consumer.seek(tp, starts[tp])
    columns = Columns()
    stalled, poll_rows = 0, FIRST_POLL_ROWS
    while any(consumer.position(tp) < ends[tp] for tp in behind):
        polled = poll(consumer, POLL_MS, min(poll_rows, max_rows - len(columns)))
        before = columns.size
        stalled = 0 if polled else stalled + 1
        if stalled > STALLED_POLLS:
            raise UnreachableError(
                f"{topic}: the broker has sent nothing for {STALLED_POLLS * POLL_MS / 1000:.0f} s; is it up?"
            )
        for tp, fetched in polled.items():
            within = fetched if fetched[-1].offset < ends[tp] else [r for r in fetched if r.offset < ends[tp]]
            columns.add(tp.partition, within)
        if columns.size > before:
            rows = sum(len(fetched) for fetched in polled.values())
            poll_rows = rows_to_poll(rows, columns.size - before, POLL_ROWS)
        if len(columns) >= max_rows or columns.size >= MAX_BATCH_BYTES:
            yield Batch(topic, columns.records(), _positions(consumer, behind, ends))
            columns = Columns()
    # Positions can move past records that no reader sees (transaction markers), so the last batch may be empty.
    yield Batch(topic, columns.records(), _positions(consumer, behind, ends))


def poll(consumer: KafkaConsumer, timeout_ms: int, max_rows: int) -> Mapping[TopicPartition, Sequence[Any]]:
    """What has come, by partition; empty if nothing did in time.

    Raises:
        StateError: records expired in the broker while they were read.
    """
    from kafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

    try:
        found: Mapping[TopicPartition, Sequence[Any]] = consumer.poll(timeout_ms=timeout_ms, max_records=max_rows)
    except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
        raise StateError(
            f"records expired in the broker while they were read ({error!r}); run again to see which are left"
        ) from error
    return found


def rows_to_poll(rows: int, size: int, most: int) -> int:
    """How many records the next poll may bring, so that they are of some megabytes if they are like the last ones.

    Args:
        rows: that came last; 0 = none came.
        size: their bytes.
        most: of small ones.

    Returns:
        1 to `most`; 0 if nothing came to go by.
    """
    return max(1, min(most, POLL_BYTES * rows // max(size, 1))) if rows else 0


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """The partitions that a topic has, in order; none if there is no such topic."""
    from kafka import TopicPartition

    return [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]


def start_positions(consumer: KafkaConsumer, topic: str, positions: Mapping[int, int]) -> Mapping[TopicPartition, int]:
    """Where reading begins in each partition that the topic has.

    Raises:
        StateError: the broker no longer has the records at a position (expired, or another broker's data).
    """
    partitions = partitions_of(consumer, topic)
    for partition in set(positions) - {tp.partition for tp in partitions}:
        if positions[partition]:
            raise StateError(
                f"{topic}[{partition}]: the lake has read up to {positions[partition]}, but the broker has no such "
                "partition; this is another broker's data. Point PERENNIAL_KAFKA_BOOTSTRAP_SERVERS at the right broker, "
                "or start with a new PERENNIAL_HOME"
            )
    if not partitions:
        return {}
    beginnings, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
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


def behind(consumer: KafkaConsumer, topic: str, positions: Mapping[int, int]) -> int:
    """How many records the broker holds that come after the positions: the consumer's lag."""
    partitions = partitions_of(consumer, topic)
    if not partitions:
        return 0
    beginnings, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    return sum(ends[tp] - max(positions.get(tp.partition, 0), beginnings[tp]) for tp in partitions)


def tell_positions(consumer: KafkaConsumer, topic: str, positions: Mapping[int, int]) -> None:
    """Tell the broker what the lake holds, for tools that show the lag of consumer groups; perennial never reads it."""
    from kafka import TopicPartition
    from kafka.errors import KafkaError
    from kafka.structs import OffsetAndMetadata

    told = {TopicPartition(topic, p): OffsetAndMetadata(offset, "", -1) for p, offset in positions.items()}
    # What the lake's commit says holds, whatever becomes of this.
    with suppress(KafkaError):
        consumer.commit(told)


def _positions(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition], ends: Mapping[TopicPartition, int]
) -> dict[int, int]:
    return {tp.partition: min(consumer.position(tp), ends[tp]) for tp in partitions}


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, a few ahead of the one that is being used.

    What reads Kafka holds Python's lock and what decodes and writes mostly does not, so both go on at once.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(MOST_AHEAD)
    given_up = threading.Event()

    def put(item: T | None, error: BaseException | None, ended: bool) -> bool:
        while not given_up.is_set():
            with suppress(queue.Full):
                ready.put((item, error, ended), timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None, False):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the items are used
            put(None, error, True)
        else:
            put(None, None, True)

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    try:
        while True:
            item, error, ended = ready.get()
            if error is not None:
                raise error
            if ended:
                return
            yield item  # type: ignore[misc]
    finally:
        given_up.set()
        maker.join()
