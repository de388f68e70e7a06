from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import polars as pl
import pytest
from kafka import KafkaConsumer
from polars.testing import assert_frame_equal

from features import ingest
from features.broker import ensure_topics
from features.consumer import Batch
from features.dead_letters import DEAD_LETTERS
from features.events import encode
from features.follow import Follower
from features.ingest import CONFLICT_TRIES, ingest_topics, refresh_view
from features.lake import Lake
from features.producer import open_producer
from features.records import Records
from features.replay import replay
from features.store import OnlineFeatures, historical, view_table
from features.tail import Tail
from features.topic_stream import TopicStream, topic_schema
from features.windows import build_features
from perennial.errors import BlockedError, ConflictError
from perennial.settings import Settings
from pipelines.spec import Aggregate, EventField, PipelineSpec

FIRST = datetime(2024, 1, 2, tzinfo=UTC)
NOW = datetime(2024, 1, 5, tzinfo=UTC)
BAD = (b"{", b"[1]", b'{"order_id": 7}')


def take_in(settings: Settings, lake: Lake, spec: PipelineSpec, created: datetime = NOW) -> tuple[int, int]:
    topics = ingest_topics(settings, lake, spec.events, created)
    for view in spec.views:
        refresh_view(settings, lake, spec, view)
    return sum(t.ingested for t in topics), sum(t.dead_lettered for t in topics)


def newest(lake: Lake, spec: PipelineSpec) -> dict[str, pl.DataFrame]:
    """Each view's values as they count: of the rows of one key and time, the one created last."""
    return {
        view.name: lake.read(view_table(view))
        .sort("created_timestamp")
        .unique([view.entity, "event_timestamp"], keep="last", maintain_order=True)
        .drop("created_timestamp")
        .sort("event_timestamp", view.entity)
        for view in spec.views
    }


def backfilled(lake: Lake, spec: PipelineSpec) -> dict[str, pl.DataFrame]:
    return {
        view.name: build_features(lake.read(spec.event(view.topic).table), view, spec.event(view.topic))
        .drop("created_timestamp")
        .sort("event_timestamp", view.entity)
        for view in spec.views
    }


def assert_same_features(lake: Lake, spec: PipelineSpec) -> None:
    expected = backfilled(lake, spec)
    for name, frame in newest(lake, spec).items():
        assert frame.height > 0
        assert_frame_equal(frame, expected[name], rel_tol=1e-9)


def assert_online_is_offline(settings: Settings, lake: Lake, spec: PipelineSpec) -> None:
    event = spec.event(spec.scored.topic)
    scored = lake.read(event.table).unique("order_id").tail(200).with_columns(event_timestamp=pl.lit(NOW))
    online = OnlineFeatures(spec, settings).frame(scored)
    assert_frame_equal(online, historical(spec, settings, scored, {}), rel_tol=1e-9)
    assert online[[a.name for v in spec.views for a in v.aggregates]].null_count().sum_horizontal()[0] < 3 * 200


def put(settings: Settings, topic: str, values: tuple[bytes | None, ...], key: bytes | None = b"k") -> None:
    with open_producer(settings) as producer:
        for value in values:
            producer.send(topic, key=key, value=value)


def test_everything_that_was_produced_is_in_the_lake_once(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, broker: Any
) -> None:
    produced = replay(kafka_settings, spec, FIRST, FIRST + timedelta(days=1))
    topic = spec.scored.topic
    put(kafka_settings, topic, BAD)
    assert take_in(kafka_settings, lake, spec) == (sum(produced.values()), 3)
    assert {e.topic: lake.rows(e.table) for e in spec.events} == produced
    history = spec.replay(FIRST, FIRST + timedelta(days=1))
    for event in spec.events:
        rows = lake.read(event.table).select(list(event.schema_)).sort(event.event_id)
        assert rows.equals(history[event.topic].sort(event.event_id))
    letters = lake.read(DEAD_LETTERS).sort("kafka_offset")
    assert letters["value"].to_list() == list(BAD)
    assert letters["kafka_offset"].to_list() == [produced[topic] + i for i in range(3)]
    told = KafkaConsumer(
        f"{topic}.dlq", bootstrap_servers=broker.address, auto_offset_reset="earliest", consumer_timeout_ms=1_000
    )
    assert [record.value for record in told] == list(BAD)
    told.close()
    assert_same_features(lake, spec)

    commits = {e.table: lake.snapshot_id(e.table) for e in spec.events}
    assert take_in(kafka_settings, lake, spec, NOW + timedelta(days=1)) == (0, 0)
    assert {e.table: lake.snapshot_id(e.table) for e in spec.events} == commits

    more = replay(kafka_settings, spec, FIRST + timedelta(days=1), FIRST + timedelta(days=2))
    assert take_in(kafka_settings, lake, spec, NOW + timedelta(days=1)) == (sum(more.values()), 0)
    assert {e.topic: lake.rows(e.table) for e in spec.events} == {t: produced[t] + more[t] for t in produced}
    assert_same_features(lake, spec)
    assert_online_is_offline(kafka_settings, lake, spec)


def test_records_that_no_topic_would_take_again_stop_nothing(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec
) -> None:
    """What cannot be put on the dead letters' topic as it is must not be met again and again."""
    event = spec.event(spec.scored.topic)
    with open_producer(kafka_settings) as producer:
        producer.send(event.topic, key=b"k", value=b"x" * 1_040_000)
        producer.send(event.topic, key=b"k", value=None)
        producer.send(event.topic, key=None, value=b"")
        producer.send(event.topic, key=b"\xff", value=b"\xff")
    good = spec.replay(FIRST, FIRST + timedelta(hours=3))[event.topic]
    put(kafka_settings, event.topic, tuple(encode(good, event)))
    taken = ingest_topics(kafka_settings, lake, [event], NOW)[0]
    assert (taken.ingested, taken.dead_lettered) == (good.height, 4)
    letters = lake.read(DEAD_LETTERS).sort("kafka_offset")
    assert [None if v is None else len(v) for v in letters["value"]] == [1_040_000, None, 0, 1]
    assert ingest_topics(kafka_settings, lake, [event], NOW)[0].dead_lettered == 0


def test_before_the_first_event_there_is_an_empty_table(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec
) -> None:
    assert take_in(kafka_settings, lake, spec) == (0, 0)
    for event in spec.events:
        assert lake.read(event.table).schema == topic_schema(event)
    assert take_in(kafka_settings, lake, spec) == (0, 0)
    scored = spec.replay(FIRST, FIRST + timedelta(hours=3))[spec.scored.topic]
    assert historical(spec, kafka_settings, scored, {}).height == scored.height


@pytest.mark.parametrize("step", ["lake", "online"])
def test_a_refresh_that_was_cut_off_is_made_good_by_the_next(
    step: str, kafka_settings: Settings, lake: Lake, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(kafka_settings, spec, FIRST, FIRST + timedelta(days=1))
    take_in(kafka_settings, lake, spec)
    replay(kafka_settings, spec, FIRST + timedelta(days=1), FIRST + timedelta(days=2))
    for event in spec.events:
        ingest_topics(kafka_settings, lake, [event], NOW)

    class Cut(BaseException):
        pass

    def cut(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append", cut) if step == "lake" else patch.setattr(ingest, "write_online", cut)
        for view in spec.views:
            with pytest.raises(Cut):
                refresh_view(kafka_settings, lake, spec, view)
    for view in spec.views:
        refresh_view(kafka_settings, lake, spec, view)
    assert_same_features(lake, spec)
    assert_online_is_offline(kafka_settings, lake, spec)


def test_a_late_event_corrects_the_features_that_came_before_it(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec
) -> None:
    view = next(v for v in spec.views if v.name == "customer_views")
    event = spec.event(view.topic)
    ensure_topics(kafka_settings, [e.topic for e in spec.events])

    def viewed(name: str, hours: float, duration: float) -> bytes:
        at = (FIRST + timedelta(hours=hours)).isoformat()
        return orjson.dumps({"view_id": name, "event_timestamp": at, "customer_id": "c1", "duration_s": duration})

    put(kafka_settings, event.topic, (viewed("a", 0, 10), viewed("b", 10, 30), viewed("c", 30, 5)))
    take_in(kafka_settings, lake, spec)
    # Taken in by the same clock: which of two values is the newer must not depend on the clock alone.
    put(kafka_settings, event.topic, (viewed("late", 7, 80), viewed("b", 10, 30), viewed("too late", 5.9, 1_000)))
    take_in(kafka_settings, lake, spec)
    found = newest(lake, spec)[view.name]
    at = [(t - FIRST) / timedelta(hours=1) for t in found["event_timestamp"]]
    assert dict(zip(at, found["customer_view_duration_mean_1d"], strict=True)) == {
        0: 10,
        7: 45,
        10: 40,
        30: pytest.approx(115 / 3),
    }
    scored = pl.DataFrame(
        {"order_id": ["o1"] * 4, "event_timestamp": found["event_timestamp"], "customer_id": ["c1"] * 4},
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    ).with_columns(product=pl.lit("hat"), price_eur=pl.lit(1.0), voucher=pl.lit(None, dtype=pl.String))
    joined = historical(spec, kafka_settings, scored, {})
    assert joined["customer_view_duration_mean_1d"].to_list() == [10, 45, 40, pytest.approx(115 / 3)]


@pytest.mark.parametrize("times", [1, CONFLICT_TRIES])
def test_an_ingest_that_others_overtake_doubles_nothing_tells_what_it_took_itself_and_goes_on(
    times: int, kafka_settings: Settings, spec: PipelineSpec, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = spec.event(spec.scored.topic)
    values = encode(spec.replay(FIRST, FIRST + timedelta(days=1))[event.topic], event)
    ensure_topics(kafka_settings, [event.topic])

    def put(records: list[bytes]) -> None:
        with open_producer(kafka_settings) as producer:
            for value in records:
                producer.send(event.topic, value=value)

    put(values[:40])
    commit, tries = TopicStream.commit, itertools.count()

    def overtaken(stream: TopicStream) -> None:
        if (number := next(tries)) < times:
            monkeypatch.setattr(TopicStream, "commit", commit)
            put(values[40 + number : 41 + number])
            ingest_topics(kafka_settings, Lake(kafka_settings, spec.name), [event], NOW)
            # Comes after the other took all that there was.
            put(values[50 + number : 51 + number])
            monkeypatch.setattr(TopicStream, "commit", overtaken)
        commit(stream)

    monkeypatch.setattr(TopicStream, "commit", overtaken)
    if times < CONFLICT_TRIES:
        assert ingest_topics(kafka_settings, lake, [event], NOW)[0].ingested == 1
        assert lake.rows(event.table) == 42
    else:
        with pytest.raises(ConflictError, match="another writer moved"):
            ingest_topics(kafka_settings, lake, [event], NOW)
        assert ingest_topics(kafka_settings, lake, [event], NOW)[0].ingested == 1
        assert lake.rows(event.table) == 40 + 2 * times
    put([*values[40 + times : 50], *values[50 + times :]])
    ingest_topics(kafka_settings, lake, [event], NOW)
    assert lake.rows(event.table) == len(values)
    assert lake.read(event.table).get_column("kafka_offset").n_unique() == len(values)
    assert lake.offsets(event.table) == {0: len(values)}


def test_a_topic_that_begins_late_is_built_in_one_step(
    lake: Lake, kafka_settings: Settings, spec: PipelineSpec
) -> None:
    view = spec.views[0]
    event = spec.event(view.topic)
    values = encode(spec.replay(FIRST, FIRST + timedelta(hours=3))[event.topic], event)
    first = 10**9
    stream = TopicStream(kafka_settings, lake, event)
    records = Records.of((0, first + i, None, v) for i, v in enumerate(values))
    stream.take(Batch(stream.event.topic, records, {0: first + len(values)}), NOW)
    stream.commit()
    assert lake.first_offsets(event.table) == {0: first}
    assert refresh_view(kafka_settings, lake, spec, view).rows > 0
    assert len(lake.existing(view_table(view)).metadata.snapshots) == 1
    assert_same_features_of(lake, spec, view.name)


def assert_same_features_of(lake: Lake, spec: PipelineSpec, name: str) -> None:
    view = next(v for v in spec.views if v.name == name)
    built = build_features(lake.read(spec.event(view.topic).table), view, spec.event(view.topic))
    columns = [view.entity, "event_timestamp", *(a.name for a in view.aggregates)]
    found = lake.read(view_table(view)).sort("event_timestamp", view.entity)
    assert_frame_equal(found.select(columns), built.select(columns), rel_tol=1e-9)


def test_a_field_that_is_new_in_the_pipeline_needs_no_event_and_no_migration(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec
) -> None:
    replay(kafka_settings, spec, FIRST, FIRST + timedelta(days=1))
    take_in(kafka_settings, lake, spec)
    view = spec.views[0]
    event = spec.event(view.topic)
    tip = EventField(name="tip", type="float", nullable=True)
    later = event.model_copy(update={"fields": (*event.fields, tip)})
    wanted = Aggregate(name="tip_mean_1d", field="tip", function="mean", window_s=86_400)
    with_tip = view.model_copy(update={"aggregates": (*view.aggregates, wanted)})
    stream = TopicStream(kafka_settings, lake, later)
    tail = Tail(lake, with_tip, later, stream.positions, stream.newest)
    assert tail.build(pl.DataFrame(schema=topic_schema(later))).height == 0
    assert lake.read(later.table, columns=("tip",))["tip"].null_count() == lake.rows(later.table)


def test_a_follower_that_could_not_keep_what_it_read_says_so(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics(kafka_settings, [e.topic for e in spec.events])
    follower = Follower(kafka_settings, lake, spec, 0.1, 1_000, lambda _: None)

    def full(_: TopicStream) -> None:
        follower.stop()
        raise BlockedError("the disk is full")

    monkeypatch.setattr(TopicStream, "commit", full)
    with pytest.raises(BlockedError, match="disk is full"):
        follower.run()


def test_a_follower_that_is_stopped_while_it_waits_says_what_for(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics(kafka_settings, [e.topic for e in spec.events])
    follower = Follower(kafka_settings, lake, spec, 0.1, 1_000, lambda _: None)

    def full(_: TopicStream) -> None:
        threading.Timer(0.2, follower.stop).start()  # within the half second that it waits
        raise BlockedError("the disk is full")

    monkeypatch.setattr(TopicStream, "commit", full)
    with pytest.raises(BlockedError, match="disk is full"):
        follower.run()
