"""Producing to Kafka: whatever is sent has arrived, or is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from features.broker import open_client, reaching
from perennial.errors import UnreachableError
from perennial.settings import Settings

if TYPE_CHECKING:
    from kafka import KafkaProducer

MAX_DEAD_LETTER_BYTES = 900_000


@contextmanager
def open_producer(settings: Settings) -> Iterator[KafkaProducer]:
    """A producer that waits for every replica; everything sent has arrived when the block ends.

    Raises:
        UnreachableError: no broker answers.
    """
    from kafka import KafkaProducer

    with reaching(settings):
        producer = open_client(
            KafkaProducer,
            settings,
            acks="all",
            linger_ms=20,
            batch_size=256 << 10,
            compression_type="lz4",
            # A broker that is away is told within the half minute, not after kafka-python's two.
            request_timeout_ms=15_000,
            delivery_timeout_ms=30_000,
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
        "see whether the broker is up",
        ", then run again",
    )


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


def send_again(producer: KafkaProducer, rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Put dead letters on their own topic and partition again, key and value as they were; wait until they have arrived.

    Args:
        producer: from `open_producer`.
        rows: as `DEAD_LETTER_SCHEMA`.

    Returns:
        Rows that cannot be sent, by number, each with the reason.

    Raises:
        kafka.errors.KafkaError: one did not arrive; in the block of `open_producer` it becomes one of ours.
    """
    from kafka.errors import MessageSizeTooLargeError

    refused: dict[int, str] = {}
    on_the_way = []
    for number, row in enumerate(rows):
        headers = [
            ("perennial.replayed-from", f"{row['topic']}[{row['kafka_partition']}]@{row['kafka_offset']}".encode()),
        ]
        try:
            on_the_way.append(
                producer.send(
                    row["topic"],
                    partition=row["kafka_partition"],
                    key=row["key"],
                    value=row["value"],
                    headers=headers,
                )
            )
        except MessageSizeTooLargeError:
            refused[number] = (
                f"a record of {len(row['value'] or b''):,} bytes; set max_request_size in PERENNIAL_KAFKA_OPTIONS"
            )
    producer.flush()
    for future in on_the_way:
        future.get(timeout=0)  # it is done, one way or the other
    return refused
