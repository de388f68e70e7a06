from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from features.broker import ensure_topics
from features.consumer import Batch, open_consumer, read_to_end, rows_to_poll
from features.producer import open_producer, send_dead_letters
from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings

Produce = Callable[[str, Mapping[int, Iterable[bytes | None]]], None]
MakeTopic = Callable[..., None]


def numbers(start: int, end: int) -> list[bytes]:
    return [str(n).encode() for n in range(start, end)]


def read(
    settings: Settings, topic: str, positions: Mapping[int, int] | None = None, max_rows: int = 100_000
) -> list[Batch]:
    with open_consumer(settings) as consumer:
        return list(read_to_end(consumer, topic, positions or {}, max_rows))


def found(batches: list[Batch]) -> dict[int, list[bytes | None]]:
    """Values by partition, in the order in which they came."""
    values: dict[int, list[bytes | None]] = {}
    for batch in batches:
        for partition, _, _, value in batch.records.rows():
            values.setdefault(partition, []).append(value)
    return values


def test_every_record_is_read_however_unevenly_the_last_batch_ends(
    kafka_settings: Settings, make_topic: MakeTopic, produce: Produce
) -> None:
    make_topic("read.uneven.v1", 3)
    produce("read.uneven.v1", {0: numbers(0, 1_000), 2: numbers(0, 1)})
    produce("read.uneven.v1", {0: numbers(1_000, 1_007)})
    batches = read(kafka_settings, "read.uneven.v1")
    assert found(batches) == {0: numbers(0, 1_007), 2: [b"0"]}
    assert batches[-1].offsets == {0: 1_007, 2: 1}
    assert next(batches[0].records.rows()) in {(0, 0, b"k", b"0"), (2, 0, b"k", b"0")}


def test_reading_goes_on_where_the_positions_say(
    kafka_settings: Settings, make_topic: MakeTopic, produce: Produce
) -> None:
    make_topic("read.resumed.v1", 2)
    produce("read.resumed.v1", {0: numbers(0, 10), 1: numbers(0, 5)})
    batches = read(kafka_settings, "read.resumed.v1", {0: 7})
    assert found(batches) == {0: numbers(7, 10), 1: numbers(0, 5)}
    assert read(kafka_settings, "read.resumed.v1", batches[-1].offsets) == []
    produce("read.resumed.v1", {1: numbers(5, 8)})
    batches = read(kafka_settings, "read.resumed.v1", {0: 10, 1: 5})
    assert found(batches) == {1: numbers(5, 8)}
    assert batches[-1].offsets == {1: 8}


@pytest.mark.parametrize("max_rows", [1, 7, 60, 61])
def test_batches_are_bounded_and_each_says_where_it_ends(
    max_rows: int, kafka_settings: Settings, make_topic: MakeTopic, produce: Produce
) -> None:
    topic = f"read.bounded_{max_rows}.v1"
    make_topic(topic, 2)
    produce(topic, {0: numbers(0, 37), 1: numbers(0, 23)})
    batches = read(kafka_settings, topic, max_rows=max_rows)
    assert found(batches) == {0: numbers(0, 37), 1: numbers(0, 23)}
    taken = {0: 0, 1: 0}
    for batch in batches:
        assert len(batch.records) <= max_rows
        for partition in batch.records.partitions.to_pylist():
            taken[partition] += 1
        # What a batch's positions say must be exactly what was handed over: they are committed with it.
        assert {p: batch.offsets[p] for p in taken} == taken


def test_records_that_come_while_reading_are_left_for_the_next_time(
    kafka_settings: Settings, make_topic: MakeTopic, produce: Produce
) -> None:
    make_topic("read.growing.v1")
    produce("read.growing.v1", {0: numbers(0, 10)})
    with open_consumer(kafka_settings) as consumer:
        batches = read_to_end(consumer, "read.growing.v1", {}, max_rows=5)
        seen = [next(batches)]
        produce("read.growing.v1", {0: numbers(10, 20)})
        seen += list(batches)
    assert found(seen) == {0: numbers(0, 10)}
    assert seen[-1].offsets == {0: 10}


def test_a_tombstone_is_a_record_too(kafka_settings: Settings, make_topic: MakeTopic, produce: Produce) -> None:
    make_topic("read.tombstone.v1")
    produce("read.tombstone.v1", {0: [b"a", None, b"b"]})
    assert found(read(kafka_settings, "read.tombstone.v1")) == {0: [b"a", None, b"b"]}


def test_a_topic_that_is_not_there_or_empty_holds_nothing(kafka_settings: Settings, make_topic: MakeTopic) -> None:
    make_topic("read.empty.v1")
    assert read(kafka_settings, "read.empty.v1") == []
    assert read(kafka_settings, "read.nowhere.v1") == []


def test_positions_beyond_the_brokers_end_are_another_brokers(
    kafka_settings: Settings, make_topic: MakeTopic, produce: Produce
) -> None:
    make_topic("read.beyond.v1")
    produce("read.beyond.v1", {0: numbers(0, 3)})
    with pytest.raises(
        StateError, match=r"read\.beyond\.v1\[0\]: the lake has read up to 4, but the broker holds 0 to 3"
    ):
        read(kafka_settings, "read.beyond.v1", {0: 4})


def test_positions_on_a_broker_without_the_topic_are_another_brokers(kafka_settings: Settings) -> None:
    with pytest.raises(StateError, match=r"read\.gone\.v1.*4"):
        read(kafka_settings, "read.gone.v1", {0: 4})


def test_positions_whose_records_have_expired_are_told(
    kafka_settings: Settings, make_topic: MakeTopic, produce: Produce, broker: Any
) -> None:
    make_topic("read.expired.v1")
    produce("read.expired.v1", {0: numbers(0, 10)})
    admin = KafkaAdminClient(bootstrap_servers=broker.address)
    admin.delete_records({TopicPartition("read.expired.v1", 0): 6})
    admin.close()
    with pytest.raises(StateError, match="read up to 2, but the broker holds 6 to 10"):
        read(kafka_settings, "read.expired.v1", {0: 2})
    assert found(read(kafka_settings, "read.expired.v1")) == {0: numbers(6, 10)}


def test_a_broker_that_does_not_answer_is_told_soon(kafka_settings: Settings, free_port: int) -> None:
    nobody = kafka_settings.model_copy(
        update={
            "kafka_bootstrap_servers": f"127.0.0.1:{free_port}",
            "kafka_options": {"bootstrap_timeout_ms": 300},
        }
    )
    for attempt in (
        lambda: read(nobody, "any.topic.v1"),
        lambda: ensure_topics(nobody, ["any.topic.v1"]),
        lambda: open_producer(nobody).__enter__(),
    ):
        began = time.monotonic()
        with pytest.raises(
            UnreachableError, match=rf"no Kafka broker answers at 127\.0\.0\.1:{free_port}.*PERENNIAL_KAFKA"
        ):
            attempt()
        assert time.monotonic() - began < 5


def test_records_that_never_arrived_are_not_passed_over_in_silence(own_broker: Any, kafka_settings: Settings) -> None:
    there = kafka_settings.model_copy(update={"kafka_bootstrap_servers": own_broker.address})
    ensure_topics(there, ["lost.record.v1"])
    hasty = there.model_copy(update={"kafka_options": {"request_timeout_ms": 300, "delivery_timeout_ms": 600}})

    def send_while_the_broker_goes() -> None:
        with open_producer(hasty) as producer:
            producer.send("lost.record.v1", b"a").get(10)
            own_broker.stop()
            producer.send("lost.record.v1", b"b")
            producer.send("lost.record.v1", b"c")

    with pytest.raises(UnreachableError, match="2 of 3 records did not arrive"):
        send_while_the_broker_goes()


def test_topics_are_made_once_with_their_partitions(kafka_settings: Settings) -> None:
    ensure_topics(kafka_settings, ["made.once.v1"], partitions=3)
    ensure_topics(kafka_settings, ["made.once.v1", "made.too.v1"])
    with open_consumer(kafka_settings) as consumer:
        assert consumer.partitions_for_topic("made.once.v1") == {0, 1, 2}
        assert consumer.partitions_for_topic("made.too.v1") == {0}


def test_dead_letters_keep_key_and_value_and_tell_whence_and_why(kafka_settings: Settings, broker: Any) -> None:
    letter = {
        "topic": "dead.letter.v1",
        "kafka_partition": 3,
        "kafka_offset": 41,
        "key": b"k",
        "value": b"\xff{",
        "reason": "not JSON: at 1",
    }
    with open_producer(kafka_settings) as producer:
        send_dead_letters(producer, [letter, {**letter, "key": None, "value": None, "reason": "a tombstone"}])
    consumer = KafkaConsumer(
        "dead.letter.v1.dlq", bootstrap_servers=broker.address, auto_offset_reset="earliest", consumer_timeout_ms=5_000
    )
    first, second = next(consumer), next(consumer)
    consumer.close()
    assert (first.key, first.value) == (b"k", b"\xff{")
    assert dict(first.headers) == {"perennial.reason": b"not JSON: at 1", "perennial.source": b"dead.letter.v1[3]@41"}
    assert (second.key, second.value) == (None, b"")  # Kafka takes no record without both
    assert dict(second.headers)["perennial.reason"] == b"a tombstone"


def test_an_option_that_no_client_knows_is_named(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"kafka_options": {"linger": 5}})
    with pytest.raises(UsageError, match=r"PERENNIAL_KAFKA_OPTIONS has \['linger'\]"), open_consumer(settings):
        pass


def test_an_option_goes_to_the_clients_it_is_meant_for(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"kafka_options": {"delivery_timeout_ms": 60_000, "linger_ms": 5}})
    with open_consumer(settings) as consumer, open_producer(settings) as producer:
        ensure_topics(settings, ["options.v1"])
        assert (producer.config["delivery_timeout_ms"], producer.config["linger_ms"]) == (60_000, 5)
        assert not {"delivery_timeout_ms", "linger_ms"} & consumer.config.keys()


def test_an_address_that_is_none_is_told_in_a_sentence(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"kafka_bootstrap_servers": "localhost:abc"})
    with (
        pytest.raises(UsageError, match="PERENNIAL_KAFKA_BOOTSTRAP_SERVERS is 'localhost:abc'"),
        open_consumer(settings),
    ):
        pass


def test_a_poll_brings_as_many_records_as_some_megabytes_are() -> None:
    assert rows_to_poll(0, 0, 1_000) == 0
    assert rows_to_poll(20, 20 * 200, 1_000) == 1_000
    assert rows_to_poll(20, 20 << 20, 1_000) == 8
    assert rows_to_poll(1, 100 << 20, 1_000) == 1
    assert rows_to_poll(5, 0, 1_000) == 1_000  # tombstones
