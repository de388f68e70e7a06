from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features.events import events_schema
from features.lake import Lake
from perennial.errors import StageError, UsageError
from perennial.settings import Settings
from perennial.template.events import FIRST_DAY, PLACED, SETTLED
from perennial.template.pipeline import PIPELINE
from pipelines.spec import EventSpec, Expectation, PipelineSpec
from training.dataset import TrainingSet, build_training_set, meeting_contract

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


def test_rows_without_a_label_are_kept_apart_with_the_same_features(tmp_path: Path) -> None:
    where = Settings(home=tmp_path)
    lake = Lake(where, SPEC.name)
    columns = pl.DataFrame([("a", 0.0), ("b", 1.0), ("c", 2.0)], schema=["order_id", "hours"], orient="row")
    lake.append(PLACED.table, taken_in(PLACED, columns.with_row_index("price_eur")))
    told = pl.DataFrame([("b", 5.0, True)], schema=["order_id", "hours", "sent_back"], orient="row")
    lake.append(SETTLED.table, taken_in(SETTLED, told))
    found = build_training_set(SPEC, where, lake, AS_OF)
    assert rows_of(found)["entity_key"].to_list() == ["b"]
    assert found.unlabelled.select("entity_key", "price_eur", "label").rows() == [("a", 0, None), ("c", 2, None)]
    assert found.unlabelled.schema == found.train.schema


Asked = tuple[str, float]
Told = tuple[str, float, bool | None]
HORIZON_H = 48


def hours(count: float) -> datetime:
    return FIRST_DAY + timedelta(hours=count)


def taken_in(event: EventSpec, rows: pl.DataFrame, marked: list[bool | None] | None = None) -> pl.DataFrame:
    """Rows of (order_id, hours) and more as ingest keeps them; fields that are not given have some value."""
    some = {"string": "hat", "float": 10.0, "bool": False}
    given = rows.with_columns(event_timestamp=pl.Series([hours(h) for h in rows["hours"]]))
    frame = given.with_columns(
        *(pl.lit(some[f.type]).alias(f.name) for f in event.fields if f.name not in given.columns),
        kafka_partition=pl.lit(0),
        kafka_offset=pl.int_range(pl.len()),
        created_timestamp=pl.lit(AS_OF),
        extra=pl.lit(None),
    )
    kept = frame.select(pl.col(name).cast(dtype) for name, dtype in events_schema(event).items())
    return kept if marked is None else kept.with_columns(is_duplicate=pl.Series(marked, dtype=pl.Boolean))


def built(
    where: Settings, placed: list[Asked], told: list[Told], spec: PipelineSpec = SPEC, **marks: list[bool | None]
) -> list[tuple[str, float, float, bool]]:
    """(order, hours, price, label) of the training set. The price of each event is its place."""
    lake = Lake(where, spec.name)
    columns = pl.DataFrame(placed, schema=["order_id", "hours"], orient="row").with_row_index("price_eur")
    lake.append(PLACED.table, taken_in(PLACED, columns, marks.get("of_placed")))
    settled = pl.DataFrame(told, schema=["order_id", "hours", "sent_back"], orient="row")
    lake.append(SETTLED.table, taken_in(SETTLED, settled, marks.get("of_told")))
    found = rows_of(build_training_set(spec, where, lake, AS_OF))
    rows = found.select("entity_key", "event_timestamp", "price_eur", "label").rows()
    return [(key, (at - FIRST_DAY) / timedelta(hours=1), price, label) for key, at, price, label in rows]


def test_each_time_a_key_is_asked_about_is_a_row_with_a_label_of_its_own(tmp_path: Path) -> None:
    assert SPEC.label.horizon_s == HORIZON_H * 3_600
    placed = [("a", 100), ("a", 0), ("b", 0), ("a", 24), ("c", 0)]
    told = [("a", 101, False), ("a", 30, True), ("b", HORIZON_H, True), ("c", HORIZON_H + 0.001, True)]
    assert built(Settings(home=tmp_path), placed, told) == [
        ("a", 0, 1, True),
        ("b", 0, 2, True),
        ("a", 24, 3, True),
        ("a", 100, 0, False),
    ]


def test_marked_duplicates_are_not_trained_on(tmp_path: Path) -> None:
    found = built(
        Settings(home=tmp_path),
        [("a", 0), ("a", 1), ("b", 0), ("b", 0)],
        [("a", 2, False), ("a", 3, True), ("b", 3, True)],
        of_placed=[None, True, False, False],
        of_told=[True, False, None],
    )
    assert found == [("a", 0, 0, True), ("b", 0, 2, True)]


def test_an_undefined_label_is_none_and_the_next_one_counts(tmp_path: Path) -> None:
    told: list[Told] = [("a", 1, None), ("a", 2, True), ("b", 1, None)]
    assert built(Settings(home=tmp_path), [("a", 0), ("b", 0)], told) == [("a", 0, 0, True)]


def test_the_pipelines_features_cannot_see_the_label(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def watch(events: pl.DataFrame) -> pl.DataFrame:
        seen.append(events.columns)
        return SPEC.request_features(events)

    watched = SPEC.model_copy(update={"request_features": watch})
    assert built(Settings(home=tmp_path), [("a", 0)], [("a", 1, True)], watched)
    assert seen == [list(events_schema(PLACED))]


def test_a_horizon_that_is_too_short_for_every_label_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 came after the horizon of 172800 s"):
        built(Settings(home=tmp_path), [("a", 0), ("b", 0)], [("a", 49, True), ("b", 72, False)])


VALID = TrainingSet(
    SPEC.name,
    AS_OF,
    SPEC.features,
    train=pl.DataFrame(),
    holdout=pl.DataFrame(),
    snapshots={},
)


def judged_set(contract: tuple[Expectation, ...], **changed: list[float | None]) -> tuple[TrainingSet, PipelineSpec]:
    """Eight orders, of which the last four are later than the newest of training."""
    at = [AS_OF - timedelta(seconds=SPEC.retrain.holdout_s) + timedelta(hours=h) for h in range(-4, 4)]
    fine = {f.name: [1.0] * 8 if f.kind == "numeric" else ["hat"] * 8 for f in SPEC.features} | changed
    keys = {"entity_key": [f"o{i}" for i in range(8)], "event_timestamp": at, "label": [True, False] * 4}
    rows = pl.DataFrame(keys | fine)
    return replace(VALID, train=rows.head(4), holdout=rows.tail(4)), SPEC.model_copy(update={"contract": contract})


PRICE = Expectation(column="price_eur", kind="between", minimum=0, mostly=0.75)


def test_rows_that_break_the_contract_are_not_trained_on_nor_compared_on() -> None:
    prices = [1.0, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0]
    built, spec = judged_set((PRICE,), price_eur=prices)
    found = meeting_contract(built, spec)
    assert found.train["entity_key"].to_list() == ["o0", "o2", "o3"]
    assert found.holdout["entity_key"].to_list() == ["o4", "o5", "o6"]
    assert found.left_out_rows == 2
    assert found.train.columns == built.train.columns


def test_rows_without_a_label_meet_the_contract_too_and_stay_apart() -> None:
    built, spec = judged_set((PRICE,), price_eur=[1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    waiting = built.holdout.with_columns(label=pl.lit(None, pl.Boolean), price_eur=pl.Series([1.0, -1.0, 1.0, 1.0]))
    found = meeting_contract(replace(built, unlabelled=waiting), spec)
    assert found.unlabelled["entity_key"].to_list() == ["o4", "o6", "o7"]
    assert (found.train.height, found.holdout.height, found.left_out_rows) == (4, 4, 1)


def test_a_training_set_that_fails_its_contract_is_refused_with_the_numbers() -> None:
    built, spec = judged_set((PRICE,), price_eur=[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, 7.0, 8.0])
    with pytest.raises(StageError, match=r"nothing was trained.*fails in 6 of 8 rows \(25.00% met, 75.00% due\)"):
        meeting_contract(built, spec)


def test_a_training_set_whose_columns_are_not_the_pipelines_is_refused() -> None:
    built, spec = judged_set((PRICE,))
    text = pl.col("placed_hour").cast(pl.String)
    built = replace(built, train=built.train.with_columns(text), holdout=built.holdout.with_columns(text))
    with pytest.raises(StageError, match="column 'placed_hour' is String, but the pipeline says numeric"):
        meeting_contract(built, spec)


def test_a_column_without_a_value_is_trained_on_as_it_is_scored() -> None:
    built, spec = judged_set((PRICE,), price_eur=[None] * 8)
    found = meeting_contract(built, spec)
    assert (found.train.height, found.holdout.height, found.left_out_rows) == (4, 4, 0)
