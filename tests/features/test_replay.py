from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import polars as pl
import pytest

from features.consumer import open_consumer, read_to_end
from features.events import decode
from features.replay import merged, replay, slices
from perennial.errors import UnreachableError
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import PipelineSpec

FIRST = datetime(2024, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> PipelineSpec:
    """The template's pipeline, with topics that no other test writes to."""
    name = f"r{abs(hash(request.node.name)) % 10**8}"
    renamed = {e.topic: e.topic.replace("pipeline_name", name) for e in PIPELINE.events}

    def history(start: datetime, end: datetime) -> Mapping[str, pl.DataFrame]:
        return {renamed[topic]: frame for topic, frame in PIPELINE.replay(start, end).items()}

    return PIPELINE.model_copy(
        update={
            "events": tuple(e.model_copy(update={"topic": renamed[e.topic]}) for e in PIPELINE.events),
            "replay": history,
        }
    )


def test_records_of_all_topics_come_in_the_order_in_which_they_happened() -> None:
    records = merged(PIPELINE, FIRST, FIRST + DAY)
    history = PIPELINE.replay(FIRST, FIRST + DAY)
    assert records.height == sum(f.height for f in history.values())
    assert records["event_timestamp"].is_sorted()
    for topic, at, key, value in records.sample(50, seed=1).iter_rows():
        told = orjson.loads(value)
        assert datetime.fromisoformat(told["event_timestamp"]) == at
        assert told[PIPELINE.event(topic).partition_key].encode() == key


def test_slices_hold_everything_once() -> None:
    end = FIRST + timedelta(hours=30)
    parts = list(slices(PIPELINE, FIRST, end, timedelta(hours=7)))
    assert [p.until for p in parts] == [FIRST + timedelta(hours=h) for h in (7, 14, 21, 28, 30)]
    assert pl.concat([p.rows for p in parts]).equals(merged(PIPELINE, FIRST, end))


def test_what_was_replayed_is_read_back_in_order(spec: PipelineSpec, kafka_settings: Settings) -> None:
    told: list[tuple[datetime, int]] = []
    produced = replay(kafka_settings, spec, FIRST, FIRST + 2 * DAY, on_slice=lambda at, n: told.append((at, n)))
    history = spec.replay(FIRST, FIRST + 2 * DAY)
    assert produced == {topic: frame.height for topic, frame in history.items()}
    assert told[-1] == (FIRST + 2 * DAY, sum(produced.values()))
    with open_consumer(kafka_settings) as consumer:
        for event in spec.events:
            batches = [batch.records for batch in read_to_end(consumer, event.topic, {})]
            events = pl.concat([decode(records, event, FIRST + 2 * DAY).events for records in batches])
            assert events.select(list(event.schema_)).equals(history[event.topic])


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.s = 1_000.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.s += seconds


def test_at_a_speed_each_record_waits_for_its_moment(spec: PipelineSpec, kafka_settings: Settings) -> None:
    clock = Clock()
    start, end = FIRST + timedelta(hours=8), FIRST + timedelta(hours=11)
    replay(kafka_settings, spec, start, end, speed=60.0, now=clock.now, sleep=clock.sleep)
    last = merged(spec, start, end)["event_timestamp"].max()
    assert isinstance(last, datetime)
    # Three hours at sixty times real time are three minutes; the clock stands at the last record's moment.
    assert clock.s - 1_000 == pytest.approx((last - start).total_seconds() / 60, abs=1e-6)
    assert max(clock.sleeps) < 60


def test_a_producer_that_has_fallen_behind_does_not_wait(spec: PipelineSpec, kafka_settings: Settings) -> None:
    clock = Clock()
    late = iter([1_000.0])
    replay(kafka_settings, spec, FIRST, FIRST + DAY, speed=1.0, now=lambda: next(late, 1e9), sleep=clock.sleep)
    assert clock.sleeps == []


def test_as_fast_as_possible_never_sleeps(spec: PipelineSpec, kafka_settings: Settings) -> None:
    clock = Clock()
    replay(kafka_settings, spec, FIRST, FIRST + DAY, now=clock.now, sleep=clock.sleep)
    assert clock.sleeps == []


def test_replay_without_a_broker_is_told(kafka_settings: Settings, free_port: int) -> None:
    nobody: dict[str, Any] = {
        "kafka_bootstrap_servers": f"127.0.0.1:{free_port}",
        "kafka_options": {"bootstrap_timeout_ms": 300},
    }
    with pytest.raises(UnreachableError):
        replay(kafka_settings.model_copy(update=nobody), PIPELINE, FIRST, FIRST + DAY)
