from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from features.events import events_schema
from features.lake import Lake
from perennial.settings import Settings
from perennial.template.events import FIRST_DAY, SETTLED
from perennial.template.pipeline import PIPELINE
from pipelines.spec import EventSpec, PipelineSpec
from training.dataset import TrainingSet, build_training_set

AS_OF = FIRST_DAY + timedelta(days=10)
OWN = {"price_eur", "placed_hour", "has_voucher", "product"}
# Without streamed features: their snapshots have tests of their own.
SPEC: PipelineSpec = PIPELINE.model_copy(
    update={"views": (), "features": tuple(f for f in PIPELINE.features if f.name in OWN)}
)


def stored(event: EventSpec) -> pl.DataFrame:
    """The history's events as ingest keeps them."""
    frame = SPEC.replay(FIRST_DAY, AS_OF)[event.topic]
    return (
        frame.with_columns(
            kafka_partition=pl.lit(0),
            kafka_offset=pl.int_range(pl.len()),
            created_timestamp=pl.lit(AS_OF),
            extra=pl.lit(None),
        )
        .cast(events_schema(event))
        .select(events_schema(event).keys())
    )


class Busy(Lake):
    """A lake into which labels come while a training set is built."""

    late = pl.DataFrame()

    def pin(self, table: str, snapshot_id: int, name: str) -> None:
        super().pin(table, snapshot_id, name)
        if self.late.height:
            self.append(SETTLED.table, self.late)
            self.late = pl.DataFrame()


def rows_of(found: TrainingSet) -> pl.DataFrame:
    return pl.concat([found.train, found.holdout])


def test_labels_that_come_while_a_set_is_built_are_not_in_it(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    lake, told = Busy(where, SPEC.name), stored(SETTLED)
    early = pl.int_range(pl.len()) % 2 == 0
    lake.append(SPEC.event(SPEC.scored.topic).table, stored(SPEC.event(SPEC.scored.topic)))
    lake.append(SETTLED.table, told.filter(early))
    expected = build_training_set(SPEC, where, lake, AS_OF)
    lake.late = told.filter(~early)
    found = build_training_set(SPEC, where, lake, AS_OF)
    assert lake.rows(SETTLED.table) == told.height
    assert found.snapshots == expected.snapshots
    assert_frame_equal(rows_of(found), rows_of(expected))
    # Read anew, the lake has them.
    assert rows_of(build_training_set(SPEC, where, lake, AS_OF)).height > rows_of(expected).height
