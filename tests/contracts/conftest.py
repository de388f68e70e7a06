"""What every pipeline must hold: run for each folder there is, and for one that `perennial init` has just written.

Nothing here knows a pipeline's columns, and a new pipeline is picked up by being there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.consumer import Batch
from features.events import Records, encode
from features.ingest import refresh_view
from features.lake import Lake
from features.topic_stream import TopicStream
from perennial.scaffold import init_pipeline
from perennial.settings import Settings, settings
from pipelines.spec import EventSpec, PipelineSpec, add_pipelines_dir, load_pipeline, pipeline_names
from training.dataset import TrainingSet, build_training_set

FRESH = "written_by_init"
EVER = datetime(1971, 1, 1, tzinfo=UTC), datetime(2199, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

if own := settings().pipelines_dir:
    add_pipelines_dir(own)


@dataclass(frozen=True)
class Sample:
    """A few days of a pipeline's history, and how to bring it into a lake.

    Attributes:
        spec: the pipeline.
        history: its events by topic, in the event's schema, sorted by event time.
        start: first instant.
        end: first instant after it.
    """

    spec: PipelineSpec
    history: Mapping[str, pl.DataFrame]
    start: datetime
    end: datetime

    def records(self, event: EventSpec) -> Records:
        """The topic's records, as Kafka would hold them."""
        values = encode(self.history[event.topic], event)
        return Records.of((0, offset, None, value) for offset, value in enumerate(values))

    def shuffled(self, event: EventSpec, dice: random.Random) -> Records:
        """The topic's records in another order, none of them later than the topic's stated lateness."""
        times = self.history[event.topic][event.event_timestamp].dt.epoch("us")
        comes = [at + dice.uniform(0, event.lateness_s * 1e6) for at in times]
        in_order = sorted(zip(comes, self.records(event).values.to_pylist(), strict=True))
        return Records.of((0, offset, None, value) for offset, (_, value) in enumerate(in_order))

    def take_in(self, home: Path, batches: Mapping[str, Sequence[Records]] | None = None) -> Lake:
        """Take batches of records in, one of each topic at a time, as `perennial ingest` would; by default all at once."""
        where = Settings(home=home)
        lake = Lake(where, self.spec.name)
        batches = batches or {e.topic: [self.records(e)] for e in self.spec.events}
        for number in range(max(len(some) for some in batches.values())):
            created = self.end + DAY + timedelta(minutes=number)
            for event in self.spec.events:
                taken = batches[event.topic][number] if number < len(batches[event.topic]) else Records.of([])
                stream = TopicStream(where, lake, event)
                reached: dict[int, int] = {}
                for partition, offset, _, _ in taken.rows():
                    reached[partition] = max(reached.get(partition, 0), offset + 1)
                stream.take(Batch(event.topic, taken, reached), created)
                assert not stream.pending_letters.height, stream.pending_letters["reason"][0]
                stream.commit()
            for view in self.spec.views:
                refresh_view(where, lake, self.spec, view)
        return lake

    def cut(self, start: datetime, end: datetime) -> Sample:
        """The events of [start, end)."""
        kept = {
            topic: frame.filter(pl.col(self.spec.event(topic).event_timestamp).is_between(start, end, closed="left"))
            for topic, frame in self.history.items()
        }
        return replace(self, history=kept, start=start, end=end)

    def training_set(self, home: Path, as_of: datetime | None = None) -> TrainingSet:
        where = Settings(home=home)
        return build_training_set(self.spec, where, Lake(where, self.spec.name), as_of or self.end)


@pytest.fixture(scope="session", params=[*pipeline_names(), FRESH])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PipelineSpec:
    """Each pipeline in turn."""
    if request.param == FRESH:
        directory = tmp_path_factory.mktemp("pipelines")
        init_pipeline(FRESH, directory)
        add_pipelines_dir(directory)
    return load_pipeline(request.param)


@pytest.fixture(scope="session")
def sample(spec: PipelineSpec) -> Sample:
    """The first days that hold enough scored events for every policy of the pipeline to judge twice."""
    whole = spec.replay(*EVER)
    event = spec.event(spec.scored.topic)
    times = whole[event.topic][event.event_timestamp]
    needed = 4 * max(spec.drift.min_rows, spec.gate.min_rows)
    if len(times) < needed:
        pytest.fail(
            f"{spec.name}: replay gives {len(times)} events of {event.topic}; at least {needed} are needed to hold "
            "four times the min_rows of its drift and gate policies"
        )
    first = times[0].replace(hour=0, minute=0, second=0, microsecond=0)
    end = times[needed - 1].replace(hour=0, minute=0, second=0, microsecond=0) + DAY
    return Sample(spec, whole, first, end).cut(first, end)


@pytest.fixture(scope="session")
def home(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state root whose lake holds the whole sample."""
    root = tmp_path_factory.mktemp(sample.spec.name)
    sample.take_in(root)
    return root


@pytest.fixture(scope="session")
def training_set(sample: Sample, home: Path) -> TrainingSet:
    """Everything labelled in the sample; the newest 30 % are kept from training."""
    found = sample.training_set(home)
    rows = pl.concat([found.train, found.holdout])
    kept = rows.height * 3 // 10
    return replace(found, train=rows.head(-kept), holdout=rows.tail(kept))
