"""Dead letters: each once, found again, and sent again once they are valid; on a real broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import polars as pl
import pytest
from kafka import KafkaConsumer

from features import dead_letters
from features.dead_letters import (
    DEAD_LETTERS,
    PLACE,
    REPLAYED,
    Replay,
    find_letters,
    read_whole,
    reason_kind,
    replay_letters,
)
from features.events import DEAD_LETTER_SCHEMA
from features.ingest import ingest_topics, refresh_view
from features.lake import Lake
from features.producer import MAX_DEAD_LETTER_BYTES
from features.store import view_table
from perennial.errors import ConflictError, UsageError
from perennial.settings import Settings
from pipelines.spec import EventSpec, PipelineSpec

NOW = datetime(2024, 1, 5, tzinfo=UTC)
AT = datetime(2024, 1, 4, 12, tzinfo=UTC)
PARTITIONS = 3
Produce = Callable[[str, Mapping[int, Any]], None]


@pytest.fixture
def viewed(spec: PipelineSpec, make_topic: Callable[[str, int], None]) -> EventSpec:
    """The topic of page views, with several partitions."""
    event = next(e for e in spec.events if "duration_s" in e.schema_)
    make_topic(event.topic, PARTITIONS)
    return event


def view(name: str, duration: float | None, hours: float = 0.0) -> bytes:
    at = (AT + timedelta(hours=hours)).isoformat()
    return orjson.dumps({"view_id": name, "event_timestamp": at, "customer_id": "c1", "duration_s": duration})


def strict(spec: PipelineSpec, event: EventSpec, *, nullable: bool) -> PipelineSpec:
    """The pipeline in which a view's duration may, or may not, be null."""
    fields = tuple(f.model_copy(update={"nullable": nullable}) if f.name == "duration_s" else f for f in event.fields)
    changed = event.model_copy(update={"fields": fields})
    return spec.model_copy(update={"events": tuple(changed if e is event else e for e in spec.events)})


def take_in(settings: Settings, lake: Lake, spec: PipelineSpec, event: EventSpec) -> tuple[int, int]:
    taken = ingest_topics(settings, lake, [spec.event(event.topic)], NOW)[0]
    for one in spec.views:
        if one.topic == event.topic:
            refresh_view(settings, lake, spec, one)
    return taken.ingested, taken.dead_lettered


def on_topic(broker: Any, topic: str) -> list[Any]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.address, auto_offset_reset="earliest", consumer_timeout_ms=1_000
    )
    records = list(consumer)
    consumer.close()
    return records


def replay(settings: Settings, lake: Lake, spec: PipelineSpec, topic: str | None = None) -> Replay:
    steps = list(replay_letters(settings, lake, spec, topic, NOW))
    return Replay(pl.concat(s.sent for s in steps), pl.concat(s.stay for s in steps))


def places(frame: pl.DataFrame) -> set[tuple[Any, ...]]:
    return set(frame.select(PLACE).iter_rows())


def test_letters_that_are_valid_today_are_taken_in_and_the_others_stay_with_todays_reason(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, viewed: EventSpec, produce: Produce, broker: Any
) -> None:
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    first, second = view("a", None), view("b", None, 1)
    produce(viewed.topic, {0: [view("good", 3.0), first], 2: [b"{", second, None]})
    assert take_in(kafka_settings, lake, before, viewed) == (1, 4)
    assert find_letters(lake, before).open.height == 4
    found = replay(kafka_settings, lake, today)
    assert places(found.sent) == {(viewed.topic, 0, 1), (viewed.topic, 2, 1)}
    stay = {(p, o): reason for _, p, o, reason in found.stay.iter_rows()}
    assert stay.keys() == {(2, 0), (2, 2)}
    assert "not JSON" in stay[2, 0]
    assert "tombstone" in stay[2, 2]
    again = [r for r in on_topic(broker, viewed.topic) if r.headers]
    assert {(r.partition, r.offset, r.key, r.value) for r in again} == {(0, 2, b"k", first), (2, 3, b"k", second)}
    assert {dict(r.headers)["perennial.replayed-from"].decode() for r in again} == {
        f"{viewed.topic}[0]@1",
        f"{viewed.topic}[2]@1",
    }
    left = find_letters(lake, today)
    assert left.replayed == 2
    assert places(left.open) == {(viewed.topic, 2, 0), (viewed.topic, 2, 2)}
    assert take_in(kafka_settings, lake, today, viewed) == (2, 0)
    assert sorted(lake.read(viewed.table)["view_id"]) == ["a", "b", "good"]
    assert replay(kafka_settings, lake, today).sent.height == 0


def test_a_replay_killed_before_it_remembered_sends_once_more_and_the_event_counts_once(
    kafka_settings: Settings,
    lake: Lake,
    spec: PipelineSpec,
    viewed: EventSpec,
    produce: Produce,
    broker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = viewed.model_copy(update={"max_ahead_s": 0, "not_before": AT})
    before = spec.model_copy(update={"events": tuple(narrow if e is viewed else e for e in spec.events)})
    produce(viewed.topic, {1: [view("early", 30.0, -1), view("good", 10.0)]})
    assert take_in(kafka_settings, lake, before, viewed) == (1, 1)

    class Killed(BaseException):
        pass

    append = Lake.append

    def killed(self: Lake, table: str, *rest: Any, **named: Any) -> Any:
        if table == REPLAYED:
            raise Killed
        return append(self, table, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append", killed)
        with pytest.raises(Killed):
            replay(kafka_settings, lake, spec)
    assert find_letters(lake, spec).open.height == 1
    assert replay(kafka_settings, lake, spec).sent.height == 1
    assert find_letters(lake, spec).open.height == 0
    assert len(on_topic(broker, viewed.topic)) == 4
    assert take_in(kafka_settings, lake, spec, viewed) == (2, 0)
    (of_view,) = (v for v in spec.views if v.topic == viewed.topic)
    newest = lake.read(view_table(of_view)).sort("event_timestamp", "created_timestamp").tail(1)
    mean, count = (next(a.name for a in of_view.aggregates if a.function == f) for f in ("mean", "count"))
    assert newest[mean].item() == pytest.approx(20.0)  # of 30 and 10; 30 twice would make it 23.3
    assert newest[count].item() == 2


def test_of_two_replays_at_once_one_ends_and_no_more_than_its_first_letters_came_twice(
    kafka_settings: Settings,
    lake: Lake,
    spec: PipelineSpec,
    viewed: EventSpec,
    produce: Produce,
    broker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    produce(viewed.topic, {0: [view(f"v{i}", None, i / 60) for i in range(9)]})
    take_in(kafka_settings, lake, before, viewed)
    monkeypatch.setattr(dead_letters, "REPLAY_LETTERS", 2)
    send_again = dead_letters.send_again

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(dead_letters, "send_again", send_again)
        assert replay(kafka_settings, Lake(kafka_settings, spec.name), today).sent.height == 9
        return send_again(*arguments)

    monkeypatch.setattr(dead_letters, "send_again", overtaken)
    with pytest.raises(ConflictError, match="another replay"):
        replay(kafka_settings, lake, today)
    assert len(on_topic(broker, viewed.topic)) == 9 + 9 + 2
    assert lake.rows(REPLAYED) == 9
    assert take_in(kafka_settings, lake, today, viewed) == (11, 0)
    assert lake.read(viewed.table).filter(~pl.col("is_duplicate"))["view_id"].n_unique() == 9
    assert lake.read(viewed.table)["is_duplicate"].sum() == 2


def test_values_are_read_some_letters_at_a_time(
    kafka_settings: Settings,
    lake: Lake,
    spec: PipelineSpec,
    viewed: EventSpec,
    produce: Produce,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    produce(viewed.topic, {p: [view(f"{p} {i}", None, i / 60) for i in range(20)] for p in range(2)})
    take_in(kafka_settings, lake, before, viewed)
    monkeypatch.setattr(dead_letters, "REPLAY_LETTERS", 15)
    held = []
    monkeypatch.setattr(
        dead_letters,
        "read_whole",
        lambda *a: held.append(read_whole(*a)) or held[-1],  # type: ignore[func-returns-value]
    )
    assert replay(kafka_settings, lake, today).sent.height == 40
    assert [frame.height for frame in held] == [15, 15, 10]
    assert take_in(kafka_settings, lake, today, viewed) == (40, 0)


def test_large_values_are_read_a_few_at_a_time(
    kafka_settings: Settings,
    lake: Lake,
    spec: PipelineSpec,
    viewed: EventSpec,
    produce: Produce,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    values: list[bytes | None] = [view("x" * (1_000 * i), None, i / 60) for i in range(1, 8)]
    produce(viewed.topic, {0: [*values, None]})
    take_in(kafka_settings, lake, before, viewed)
    monkeypatch.setattr(dead_letters, "REPLAY_BYTES", 8_000)
    held: list[pl.DataFrame] = []
    monkeypatch.setattr(
        dead_letters,
        "read_whole",
        lambda *a: held.append(read_whole(*a)) or held[-1],  # type: ignore[func-returns-value]
    )
    told = replay(kafka_settings, lake, today)
    assert (told.sent.height, told.stay.height) == (7, 1)
    sizes = [frame["value"].bin.size().fill_null(0).sum() for frame in held]
    assert len(sizes) > 3
    assert max(sizes) < 8_000 + 7_500


def test_a_letter_that_cannot_be_sent_stays_and_says_why(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, viewed: EventSpec, produce: Produce
) -> None:
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    start = view("large", None)[:-1] + b', "more": "'
    # As large as a producer sends at most; with the header that says where it came from it is larger.
    large = start + b"x" * ((1 << 20) - len(start) - 2 - 120) + b'"}'
    assert len(large) > MAX_DEAD_LETTER_BYTES
    produce(viewed.topic, {0: [view("small", None), large]})
    assert take_in(kafka_settings, lake, before, viewed) == (0, 2)
    lake.append(
        DEAD_LETTERS,
        pl.DataFrame(
            [
                (viewed.topic, 7, 1, NOW, None, view("moved", 1.0), "then"),
                ("gone.topic.v1", 0, 1, NOW, None, b"{}", "then"),
            ],
            schema=DEAD_LETTER_SCHEMA,
            orient="row",
        ),
        partition_by=None,
    )
    found = replay(kafka_settings, lake, today)
    assert places(found.sent) == {(viewed.topic, 0, 0)}
    reasons = {(topic, p): reason for topic, p, _, reason in found.stay.iter_rows()}
    assert "max_request_size" in reasons[viewed.topic, 0]
    assert reasons[viewed.topic, 7] == "the broker has no partition 7 of this topic"
    assert reasons["gone.topic.v1", 0] == "the pipeline has no such topic any more"


def test_one_topics_letters_are_found_and_replayed_alone(
    kafka_settings: Settings, lake: Lake, spec: PipelineSpec, viewed: EventSpec, produce: Produce
) -> None:
    other = spec.scored.topic
    before, today = strict(spec, viewed, nullable=False), strict(spec, viewed, nullable=True)
    # At the same places of two topics.
    produce(viewed.topic, {0: [view("a", None), b"b"]})
    produce(other, {0: [b"1", b"2"]})
    take_in(kafka_settings, lake, before, viewed)
    ingest_topics(kafka_settings, lake, [spec.event(other)], NOW)
    assert find_letters(lake, spec, other).open["topic"].unique().to_list() == [other]
    assert read_whole(lake, find_letters(lake, spec, viewed.topic).open)["value"].to_list() == [b"b", view("a", None)]
    assert replay(kafka_settings, lake, today, viewed.topic).sent.height == 1
    assert find_letters(lake, spec, other).open.height == 2
    with pytest.raises(UsageError, match=f"no topic 'x'; there is: .*{viewed.topic}"):
        find_letters(lake, spec, "x")


def test_a_letter_that_two_ingests_kept_is_one(kafka_settings: Settings, lake: Lake, spec: PipelineSpec) -> None:
    topic = spec.scored.topic
    letter = pl.DataFrame([(topic, 0, 5, NOW, b"k", b"{", "bad")], schema=DEAD_LETTER_SCHEMA, orient="row")
    for _ in range(2):
        lake.append(DEAD_LETTERS, letter, partition_by=None)
    assert find_letters(lake, spec).open.height == 1
    assert read_whole(lake, letter).equals(letter)


def test_newest_letters_come_first_and_without_any_there_are_none(lake: Lake, spec: PipelineSpec) -> None:
    assert find_letters(lake, spec).open.height == 0
    topic = spec.scored.topic
    rows = [(topic, 0, o, NOW + timedelta(seconds=s), None, b"", "bad") for o, s in ((1, 0), (2, 0), (0, 9))]
    lake.append(DEAD_LETTERS, pl.DataFrame(rows, schema=DEAD_LETTER_SCHEMA, orient="row"), partition_by=None)
    assert find_letters(lake, spec).open["kafka_offset"].to_list() == [0, 2, 1]


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        (
            [
                "field 'price_eur' is '12, a b', a str, expected float",
                "field 'price_eur' is [1, 2], a list, expected float",
            ],
            None,
        ),
        (
            ["field 'delay_3h' is '12, a b', a str, expected float", "field 'delay_3h' is '', a str, expected float"],
            "field 'delay_3h' is …, a str, expected float",
        ),
        (
            [
                "not JSON: unexpected end of data: line 1 column 2 (char 1)",
                "not JSON: unexpected end of data: line 3 column 20 (char 71)",
            ],
            "not JSON: unexpected end of data: line # column # (char #)",
        ),
        (["not JSON: str is not valid UTF-8"], "not JSON: str is not valid UTF-8"),
        (
            [
                "field 'event_timestamp' is '2199-01-01T00:00:00Z', 9 days, 1:02:03.4 ahead of the clock "
                "(2026-11-22T11:26:48+00:00), at most 300 s is allowed"
            ],
            "field 'event_timestamp' is …, # ahead of the clock (#), at most # s is allowed",
        ),
    ],
)
def test_reasons_that_differ_in_values_alone_are_of_one_kind(reasons: list[str], kind: str | None) -> None:
    kinds = pl.DataFrame({"reason": reasons}).select(reason_kind()).to_series().unique().to_list()
    if kind is None:
        assert len(kinds) == 2  # a text and a list are not the same mistake
    else:
        assert kinds == [kind]
