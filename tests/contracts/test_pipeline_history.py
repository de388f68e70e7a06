from __future__ import annotations

import pickle
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features.events import Records, decode
from features.lake import Lake
from features.store import OnlineFeatures, historical, view_table
from perennial.settings import Settings
from pipelines.spec import PipelineSpec

Contracted = Any  # tests/contracts/conftest.py::Sample


def counted(lake: Lake, spec: PipelineSpec) -> dict[str, pl.DataFrame]:
    """Each view's values as they count: of the rows of one key and time, the one created last."""
    return {
        view.name: lake.read(view_table(view))
        .sort("created_timestamp")
        .unique([view.entity, "event_timestamp"], keep="last", maintain_order=True)
        .drop("created_timestamp")
        .sort("event_timestamp", view.entity)
        for view in spec.views
    }


def rows_of(training_set: Any) -> pl.DataFrame:
    return pl.concat([training_set.train, training_set.holdout])


def test_history_has_every_topic_sorted_and_in_its_schema(spec: PipelineSpec, sample: Contracted) -> None:
    assert set(sample.history) == {e.topic for e in spec.events}
    for event in spec.events:
        frame = sample.history[event.topic]
        assert dict(frame.schema) == event.schema_
        assert frame[event.event_timestamp].is_sorted()
        assert frame.height > 0
        required = [f.name for f in event.fields if not f.nullable]
        assert frame.select(required).null_count().sum_horizontal()[0] == 0
        assert frame.select(event.event_id).is_unique().all()


def test_history_leaves_out_its_end_and_joins_without_gaps(spec: PipelineSpec, sample: Contracted) -> None:
    event = spec.event(spec.scored.topic)
    middle = sample.history[event.topic][event.event_timestamp][100]
    before, after = spec.replay(sample.start, middle), spec.replay(middle, sample.end)
    for topic, frame in sample.history.items():
        assert_frame_equal(pl.concat([before[topic], after[topic]]), frame)
    assert after[event.topic][event.event_timestamp][0] == middle


def test_every_event_survives_its_record(spec: PipelineSpec, sample: Contracted) -> None:
    for event in spec.events:
        decoded = decode(sample.records(event), event, sample.end)
        assert decoded.dead_letters.is_empty()
        assert_frame_equal(decoded.events.select(list(event.schema_)), sample.history[event.topic])


def test_a_stream_of_shuffled_batches_ends_in_the_features_of_a_backfill(
    spec: PipelineSpec, sample: Contracted, tmp_path: Path
) -> None:
    day = sample.cut(sample.start, sample.start + timedelta(days=2))
    dice = random.Random(3)
    streamed: dict[str, list[Records]] = {}
    for event in spec.events:
        records = list(day.shuffled(event, dice).rows())
        cuts = sorted(dice.randrange(len(records) + 1) for _ in range(3))
        streamed[event.topic] = [
            Records.of(records[a:b]) for a, b in zip([0, *cuts], [*cuts, len(records)], strict=True)
        ]
        # Kafka hands the last batch over again, in another place: every event of it is a duplicate.
        end = len(records)
        again = enumerate(streamed[event.topic][-1].rows(), end)
        repeated = Records.of((0, offset, key, value) for offset, (_, _, key, value) in again)
        streamed[event.topic].append(repeated)
    stream = counted(day.take_in(tmp_path / "stream", streamed), spec)
    backfill = counted(day.take_in(tmp_path / "backfill"), spec)
    for view in spec.views:
        assert backfill[view.name].height > 0
        assert_frame_equal(stream[view.name], backfill[view.name], rel_tol=1e-9)


@pytest.mark.parametrize("future", ["gone", "another"])
def test_no_future_leaks_into_features_or_the_training_set(
    future: str, spec: PipelineSpec, sample: Contracted, home: Path, tmp_path: Path
) -> None:
    now = sample.start + (sample.end - sample.start) * 0.7
    past = sample.cut(sample.start, now).history
    if future == "gone":
        history = past
    else:
        # Other things happen from now on: the values of each event's fields are dealt to other events.
        later = sample.cut(now, sample.end).history
        history = {
            topic: pl.concat([past[topic], _dealt_anew(frame, spec, topic)]).sort(spec.event(topic).event_timestamp)
            for topic, frame in later.items()
        }
    lake = type(sample)(spec, history, sample.start, sample.end).take_in(tmp_path)
    found, expected = sample.training_set(tmp_path, now), sample.training_set(home, now)
    assert rows_of(expected).height > 0
    assert_frame_equal(rows_of(found), rows_of(expected), rel_tol=1e-9)
    whole = counted(Lake(Settings(home=home), spec.name), spec)
    for name, frame in counted(lake, spec).items():
        before = pl.col("event_timestamp") < now
        assert_frame_equal(frame.filter(before), whole[name].filter(before), rel_tol=1e-9)


def _dealt_anew(frame: pl.DataFrame, spec: PipelineSpec, topic: str) -> pl.DataFrame:
    event = spec.event(topic)
    fixed = {*event.event_id, event.event_timestamp}
    return frame.with_columns(frame[name].shuffle(seed=1) for name in event.schema_ if name not in fixed)


def test_a_label_comes_after_the_event_it_judges(spec: PipelineSpec, sample: Contracted) -> None:
    scored, told = spec.event(spec.scored.topic), spec.event(spec.label.topic)
    asked = sample.history[scored.topic].select(spec.scored.key, asked_at=scored.event_timestamp)
    judged = sample.history[told.topic].select(
        pl.col(spec.label.key).alias(spec.scored.key), told_at=told.event_timestamp
    )
    both = asked.join(judged, on=spec.scored.key)
    assert both.height > 0
    waited = both["told_at"] - both["asked_at"]
    assert waited.min() > timedelta(0)
    # Nearly all come within the horizon: later ones count as never.
    assert (waited <= timedelta(seconds=spec.label.horizon_s)).mean() > 0.99


def test_the_order_in_which_events_came_in_does_not_matter_within_the_lateness(
    spec: PipelineSpec, sample: Contracted, home: Path, tmp_path: Path
) -> None:
    dice = random.Random(5)
    shuffled = {e.topic: [sample.shuffled(e, dice)] for e in spec.events}
    lake = sample.take_in(tmp_path, shuffled)
    whole = counted(Lake(Settings(home=home), spec.name), spec)
    for name, frame in counted(lake, spec).items():
        assert_frame_equal(frame, whole[name], rel_tol=1e-9)
    assert_frame_equal(rows_of(sample.training_set(tmp_path)), rows_of(sample.training_set(home)), rel_tol=1e-9)


def test_a_training_set_is_the_same_however_often_it_is_built(sample: Contracted, home: Path) -> None:
    one, other = sample.training_set(home), sample.training_set(home)
    assert one.snapshots == other.snapshots
    assert_frame_equal(rows_of(one), rows_of(other))
    assert not rows_of(one).select("entity_key", "event_timestamp").is_duplicated().any()


def test_request_features_are_a_pure_function_of_their_rows(spec: PipelineSpec, sample: Contracted) -> None:
    asked = sample.history[spec.scored.topic].head(300)
    before = asked.clone()
    features = spec.request_features(asked)
    assert_frame_equal(asked, before)
    assert features.height == asked.height
    assert_frame_equal(spec.request_features(asked), features)
    assert_frame_equal(spec.request_features(asked.reverse()), features.reverse())
    one_by_one = pl.concat([spec.request_features(asked.slice(i, 1)) for i in range(20)])
    assert_frame_equal(one_by_one, features.head(20))
    assert spec.request_features(asked.clear()).schema == features.schema


def test_request_and_streamed_features_are_together_the_models_inputs(spec: PipelineSpec, sample: Contracted) -> None:
    own = spec.request_features(sample.history[spec.scored.topic].head(1)).columns
    streamed = [a.name for v in spec.views for a in v.aggregates]
    assert len({*own, *streamed}) == len(own) + len(streamed)
    assert set(spec.feature_names) <= {*own, *streamed}


def test_the_pipelines_functions_can_be_sent_to_another_process(spec: PipelineSpec, sample: Contracted) -> None:
    asked = sample.history[spec.scored.topic].head(5)
    there = pickle.loads(pickle.dumps(spec.request_features))
    assert_frame_equal(there(asked), spec.request_features(asked))
    for function in (spec.label.value, spec.replay):
        assert pickle.loads(pickle.dumps(function)) is function


def test_the_label_is_boolean_one_a_row_and_says_both(spec: PipelineSpec, sample: Contracted) -> None:
    told = sample.history[spec.label.topic]
    label = spec.label.value(told)
    assert label.len() == told.height
    assert label.dtype == pl.Boolean
    assert 0.0 < label.mean() < 1.0
    assert spec.label.value(told.clear()).len() == 0


def test_what_a_request_sees_now_is_what_training_will_see_of_it(
    spec: PipelineSpec, sample: Contracted, home: Path
) -> None:
    """Online and point in time, the newest values are the same."""
    where, event = Settings(home=home), spec.event(spec.scored.topic)
    now = pl.lit(sample.end).cast(pl.Datetime("us", "UTC")).alias(event.event_timestamp)
    asked = sample.history[event.topic].tail(400).with_columns(now)
    online = OnlineFeatures(spec, where).frame(asked)
    assert_frame_equal(online, historical(spec, where, asked, {}), rel_tol=1e-9)
    for view in spec.views:
        known = online.select(pl.col(a.name).is_not_null().any() for a in view.aggregates)
        assert any(known.row(0)), f"no row has a value of {view.name}"
