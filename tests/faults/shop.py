"""A shop whose stream is ingested while things break, and what must hold of it at the end whatever broke.

What must hold is worked out from Kafka's own log, record by record, with none of the code that is tested.
"""

from __future__ import annotations

import json
import random
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from polars.testing import assert_frame_equal

from features.backfill import Backfill, backfill
from features.broker import ensure_topics
from features.dead_letters import DEAD_LETTERS
from features.follow import Committed, Follower
from features.ingest import ingest_topics, refresh_view
from features.lake import Lake
from features.store import OnlineWriter, view_table
from features.windows import build_features
from perennial.errors import ConflictError
from perennial.settings import Settings
from pipelines.spec import Aggregate, EventField, EventSpec, FeatureView, LabelSpec, PipelineSpec, ScoredSpec

FIRST = datetime(2024, 1, 2, tzinfo=UTC)
HOUR_S = 3_600
LATENESS_S = 6 * HOUR_S
CUSTOMERS = [f"c{i}" for i in range(12)]
BAD = (b"{", b"[1]", b'{"id": 7}', b"\xff\xfe", b"")
PARTITIONS = 3


def aggregates(kind: str, changed: bool) -> tuple[Aggregate, ...]:
    """What is first asked of a topic; and after a change of mind: every window is shorter but one, and there is one more."""
    windows_h = (3, 2, 6, 1) if changed else (24, 2, 24, 2)
    more = (Aggregate(name=f"{kind}_amount_mean_5h", field="amount", function="mean", window_s=5 * HOUR_S),)
    names = (
        ("amount_mean_1d", "amount"),
        ("count_2h", "amount"),
        ("liked_rate_1d", "liked"),
        ("amount_last_2h", "amount"),
    )
    return tuple(
        Aggregate(name=f"{kind}_{name}", field=field_, function=name.split("_")[-2], window_s=hours * HOUR_S)
        for (name, field_), hours in zip(names, windows_h, strict=True)
    ) + (more if changed else ())


def make_spec(name: str, changed: bool = False) -> PipelineSpec:
    """Two topics, and a view of each."""
    viewed, ordered = (
        EventSpec(
            topic=f"{name}.{kind}.v1",
            fields=(
                EventField(name="id", type="string"),
                EventField(name="event_timestamp", type="timestamp"),
                EventField(name="customer_id", type="string"),
                EventField(name="amount", type="float"),
                EventField(name="liked", type="bool", nullable=True),
            ),
            event_timestamp="event_timestamp",
            event_id=("id",),
            partition_key="customer_id",
            lateness_s=LATENESS_S,
        )
        for kind in ("viewed", "ordered")
    )
    return PipelineSpec(
        name=name,
        description="A shop.",
        events=(viewed, ordered),
        scored=ScoredSpec(topic=ordered.topic, key="id"),
        label=LabelSpec(topic=viewed.topic, key="id", value=lambda f: f["liked"], horizon_s=HOUR_S),
        views=tuple(
            FeatureView(
                name=f"of_{event.topic.split('.')[1]}",
                entity="customer_id",
                topic=event.topic,
                key="customer_id",
                aggregates=aggregates(kind, changed),
                ttl_s=48 * HOUR_S,
            )
            for kind, event in (("viewed", viewed), ("ordered", ordered))
        ),
        request_features=lambda frame: frame.select("amount"),
        features=(),
        contract=(),
        replay=lambda start, end: {},
    )


@dataclass(frozen=True)
class Place:
    """Where one test's shop is, and whether its views' definitions were changed; goes to other processes."""

    home: Path
    address: str
    name: str
    online: str = ""
    kafka_options: tuple[tuple[str, Any], ...] = ()
    changed: bool = False

    @property
    def settings(self) -> Settings:
        return Settings(
            home=self.home,
            kafka_bootstrap_servers=self.address,
            kafka_options=dict(self.kafka_options),
            online_store_url=self.online,
        )

    @property
    def lake(self) -> Lake:
        return Lake(self.settings, self.name)

    @property
    def spec(self) -> PipelineSpec:
        return make_spec(self.name, self.changed)


def event_value(name: str, at: datetime, customer: str = "c0", amount: float = 1.0, liked: bool | None = None) -> bytes:
    told = {"id": name, "event_timestamp": at.isoformat(), "customer_id": customer, "amount": amount, "liked": liked}
    return json.dumps(told).encode()


@dataclass
class Shop:
    """Sends events whose times move on, with late ones, too late ones, second copies and bad records among them."""

    place: Place
    chance: random.Random
    step_s: float = 300
    sent: Counter[str] = field(default_factory=Counter)
    _recent: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        ensure_topics(self.place.settings, [e.topic for e in self.place.spec.events], PARTITIONS)
        self._topics = [e.topic for e in self.place.spec.events]
        self._producer = KafkaProducer(bootstrap_servers=self.place.address, acks="all", linger_ms=2)

    def put(self, topic: str, values: Sequence[bytes | None], partition: int = 0) -> None:
        """Put values on a partition, in order."""
        for sent in [self._producer.send(topic, value, key=b"k", partition=partition) for value in values]:
            sent.get(20)

    def send(self, records: int) -> None:
        """Put so many records on the topics; they are in the broker when this returns."""
        for sent in [self._producer.send(*self._record()) for _ in range(records)]:
            sent.get(20)

    def _record(self) -> tuple[str, bytes, bytes, None, int]:
        """Arguments of a producer's `send`: topic, value, key, headers, partition."""
        topic, partition = self.chance.choice(self._topics), self.chance.randrange(PARTITIONS)
        kind = self.chance.choices(("in order", "late", "too late", "twice", "bad"), (70, 12, 3, 10, 5))[0]
        self.sent[kind] += 1
        if kind == "bad":
            return topic, self.chance.choice(BAD), b"k", None, partition
        if kind == "twice" and self._recent:
            topic, value, key = self.chance.choice(self._recent)
            return topic, value, key, None, partition
        behind_s = {
            "late": self.chance.uniform(0, LATENESS_S),
            "too late": self.chance.uniform(1.2, 2) * LATENESS_S,
        }.get(kind, 0.0)
        self._number += 1
        at = FIRST + timedelta(seconds=round(self._number * self.step_s - behind_s))
        customer = self.chance.choice(CUSTOMERS)
        amount = round(self.chance.uniform(1, 100), 2)
        value = event_value(f"e{self._number}", at, customer, amount, self.chance.choice((True, False, None)))
        self._recent = [*self._recent[-200:], (topic, value, customer.encode())]
        return topic, value, customer.encode(), None, partition

    @contextmanager
    def sending(self, records: int, every_s: float) -> Iterator[None]:
        """Records again and again while the block runs."""
        ended, failed = threading.Event(), []

        def send() -> None:
            try:
                while not ended.wait(every_s):
                    self.send(records)
            except Exception as error:  # noqa: BLE001 - raised below
                failed.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            ended.set()
            sender.join()
        if failed:
            raise failed[0]

    def close(self) -> None:
        self._producer.close()


# What processes do.


def take_in(place: Place, created: datetime | None = None) -> None:
    """One micro-batch of everything, as the flow does it."""
    settings, lake, spec = place.settings, place.lake, place.spec
    ingest_topics(settings, lake, spec.events, created or datetime.now(UTC))
    for view in spec.views:
        refresh_view(settings, lake, spec, view)


def take_in_again_and_again(place: Place, ended: Any = None) -> None:
    """Micro-batch after micro-batch; overtaken by another ingest, it begins anew, as the schedule would."""
    while ended is None or not ended.is_set():
        with suppress(ConflictError):
            take_in(place)


def make_follower(place: Place, on_commit: Callable[[Committed], None] = lambda _: None) -> Follower:
    return Follower(place.settings, place.lake, place.spec, 0.25, 500, on_commit)


def follow(place: Place, ended: Any = None) -> None:
    """Follow for ever, or until it is told to end."""
    follower = make_follower(place)
    if ended is not None:
        threading.Thread(target=lambda: (ended.wait(), follower.stop()), daemon=True).start()
    follower.run()


def follow_to_the_end(place: Place) -> None:
    """Follow until nothing is left to read."""
    follower = make_follower(
        place, lambda committed: None if any(t.lag_rows for t in committed.topics) else follower.stop()
    )
    follower.run()


def backfill_all(place: Place) -> list[Backfill]:
    """Every view anew, as the command does it."""
    return [backfill(place.settings, place.lake, place.spec, view) for view in place.spec.views]


def wait_until(true: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"still not so after {within_s} s"
        time.sleep(0.05)


@contextmanager
def running(follower: Follower) -> Iterator[None]:
    """A follower in a thread; what it raised is raised at the end of the block."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            follower.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        follower.stop()
        thread.join(90)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def all_is_in(place: Place) -> bool:
    """Whether the lake's events and features have reached the ends of all topics."""
    consumer = KafkaConsumer(bootstrap_servers=place.address)
    try:
        for event in place.spec.events:
            ends = consumer.end_offsets([TopicPartition(event.topic, p) for p in range(PARTITIONS)])
            reached = {tp.partition: end for tp, end in ends.items()}
            tables = [event.table, *(view_table(v) for v in place.spec.views if v.topic == event.topic)]
            if any({**dict.fromkeys(reached, 0), **place.lake.offsets(table)} != reached for table in tables):
                return False
    finally:
        consumer.close()
    return True


# What must hold.


@dataclass(frozen=True)
class Logged:
    """A record as it is in Kafka's log; `document` is None for one that is no event."""

    partition: int
    offset: int
    value: bytes | None
    document: Mapping[str, Any] | None


def read_log(place: Place, topic: str) -> list[Logged]:
    """Every record of a topic, by another consumer; a partition's in their order."""
    consumer = KafkaConsumer(bootstrap_servers=place.address, enable_auto_commit=False)
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    found = []
    while any(consumer.position(tp) < ends[tp] for tp in partitions):
        for tp, records in consumer.poll(200).items():
            for record in records:
                document = None if record.value is None or record.value in BAD else json.loads(record.value)
                found.append(Logged(tp.partition, record.offset, record.value, document))
    consumer.close()
    return sorted(found, key=lambda r: (r.partition, r.offset))


def time_of(document: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(document["event_timestamp"])


def in_time(log: Sequence[Logged]) -> list[Logged]:
    """Events not further than the lateness behind the newest that their partition held before them."""
    newest: dict[int, datetime] = {}
    kept = []
    for record in log:
        if record.document is None:
            continue
        at = time_of(record.document)
        if (newest.get(record.partition, at) - at).total_seconds() <= LATENESS_S:
            kept.append(record)
        newest[record.partition] = max(at, newest.get(record.partition, at))
    return kept


def expected_features(log: Sequence[Logged], view: FeatureView) -> pl.DataFrame:
    """A view's values by plain loops: of every key and time that an event has, the window that ends there."""
    once = {record.document["id"]: record.document for record in in_time(log) if record.document}
    by_key: dict[str, list[tuple[datetime, str, Mapping[str, Any]]]] = {}
    for name, document in once.items():
        by_key.setdefault(document[view.key], []).append((time_of(document), name, document))
    rows = []
    for key, events in by_key.items():
        events.sort(key=lambda event: event[:2])
        times = [at for at, _, _ in events]
        for at in sorted(set(times)):
            row: dict[str, Any] = {view.entity: key, "event_timestamp": at}
            for aggregate in view.aggregates:
                begin = bisect_right(times, at - timedelta(seconds=aggregate.window_s))
                within = [document[aggregate.field] for _, _, document in events[begin : bisect_right(times, at)]]
                row[aggregate.name] = _value(aggregate, [value for value in within if value is not None])
            rows.append(row)
    schema = {view.entity: pl.String(), "event_timestamp": pl.Datetime("us", "UTC")}
    schema |= {a.name: pl.Float64() for a in view.aggregates}
    return pl.DataFrame(rows, schema=schema).sort("event_timestamp", view.entity)


def _value(aggregate: Aggregate, values: list[float]) -> float | None:
    if aggregate.function == "count":
        return float(len(values))
    if not values:
        return None
    return float(values[-1]) if aggregate.function == "last" else sum(values) / len(values)


def newest_rows(place: Place, view: FeatureView) -> pl.DataFrame:
    """A view's values as they count in the lake: of one key and time, the row created last."""
    rows = place.lake.read(view_table(view)).sort("created_timestamp")
    newest = rows.unique([view.entity, "event_timestamp"], keep="last").drop("created_timestamp")
    return newest.sort("event_timestamp", view.entity)


def online_rows(place: Place, view: FeatureView) -> pl.DataFrame:
    """Everything that is online."""
    online = OnlineWriter(place.spec, place.settings)
    keys = sorted({key for batch in online.keys(view) for key in batch})
    return online.read(view, keys).drop("created_timestamp").sort(view.entity)


def assert_online_is(features: pl.DataFrame, place: Place, view: FeatureView) -> None:
    """Every key is online with the values of its newest time, and no other key is."""
    expected = features.sort("event_timestamp").unique(view.entity, keep="last").sort(view.entity)
    assert_frame_equal(online_rows(place, view), expected, rel_tol=1e-9, check_column_order=False)


def assert_everything_counts_once(place: Place) -> None:
    """The lake holds exactly what was produced, the features are those of plain loops and of a backfill, and are online."""
    lake, spec = place.lake, place.spec
    letters = []
    for event in spec.events:
        log = read_log(place, event.topic)
        letters += [(event.topic, r.partition, r.offset, r.value) for r in log if r.document is None]
        rows = lake.read(event.table)
        found = {
            (row["kafka_partition"], row["kafka_offset"]): {name: row[name] for name in event.schema_}
            for row in rows.iter_rows(named=True)
        }
        assert len(found) == rows.height, f"{rows.height - len(found)} rows of {event.topic} are there twice"
        produced = {
            (r.partition, r.offset): {**r.document, "event_timestamp": time_of(r.document)}
            for r in log
            if r.document is not None
        }
        assert found.keys() == produced.keys()
        assert found == produced
        counted = rows.filter(~pl.col("is_duplicate"), pl.col("late_s") <= LATENESS_S).get_column("id").to_list()
        assert sorted(counted) == sorted({r.document["id"] for r in in_time(log) if r.document})
        for view in (v for v in spec.views if v.topic == event.topic):
            features = newest_rows(place, view)
            assert_frame_equal(features, expected_features(log, view), rel_tol=1e-9)
            backfill = build_features(rows, view, event).drop("created_timestamp")
            assert_frame_equal(features, backfill.sort("event_timestamp", view.entity), rel_tol=1e-9)
            assert_online_is(features, place, view)
    if letters:
        kept = lake.read(DEAD_LETTERS)
        assert sorted(kept["reason"].str.len_bytes() > 0) == [True] * kept.height
        assert sorted(kept.select("topic", "kafka_partition", "kafka_offset", "value").rows()) == sorted(letters)
