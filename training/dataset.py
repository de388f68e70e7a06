"""The rows a model is fitted on, point in time and pinned to lake snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import polars as pl

from features.labels import LABEL, join_labels, labels
from features.lake import EVENT_TIMESTAMP, Lake, first_of_each
from features.store import ENTITY_KEY, historical, view_table
from perennial.errors import StageError, UsageError
from perennial.settings import Settings
from pipelines.spec import Feature, PipelineSpec
from validation.contract import Kind, validate
from validation.verdict import Status

ROW = "_row"


@dataclass(frozen=True)
class TrainingSet:
    """What a candidate learns from, and the newer rows it is compared on.

    Attributes:
        pipeline: name of the pipeline.
        as_of: the moment as which history was read (UTC).
        features: the model's inputs, in order.
        train: feature columns, `entity_key` (string), `event_timestamp` (UTC), `label` (boolean).
        holdout: the same columns, later than every training row.
        snapshots: the lake snapshot each table was read at.
        left_out_rows: rows that are in neither, because they do not meet the pipeline's contract.
        unlabelled: rows that were scored like these, and whose label was not known: the same columns. Nothing is learned from
            them, but what the model is asked later holds such rows too.
    """

    pipeline: str
    as_of: datetime
    features: tuple[Feature, ...]
    train: pl.DataFrame
    holdout: pl.DataFrame
    snapshots: Mapping[str, int]
    left_out_rows: int = 0
    unlabelled: pl.DataFrame = field(default_factory=pl.DataFrame)


def all_rows(training_set: TrainingSet) -> pl.DataFrame:
    """Every row that was scored, labelled or not."""
    return pl.concat([training_set.train, training_set.holdout, training_set.unlabelled], how="diagonal")


def build_training_set(spec: PipelineSpec, settings: Settings, lake: Lake, as_of: datetime) -> TrainingSet:
    """Every scored event whose label is known at `as_of`, its features as they were known at the event.

    The newest stretch (`RetrainPolicy.holdout_s`) is kept from training: champion and candidate are compared on it.

    Args:
        spec: the pipeline.
        settings: where Feast is.
        lake: the pipeline's lake.
        as_of: the moment as which history is read (UTC). Nothing that happened later can be in the result.

    Returns:
        The set, pinned: the snapshots name exactly the data it was made from.

    Raises:
        UsageError: there is no labelled row before `as_of`.
    """
    event, told = spec.event(spec.scored.topic), spec.event(spec.label.topic)
    tables = [event.table, told.table, *(view_table(v) for v in spec.views)]
    snapshots = {table: found for table in tables if (found := lake.snapshot_id(table)) is not None}
    for table, snapshot_id in snapshots.items():
        lake.pin(table, snapshot_id, f"training-{as_of:%Y%m%dT%H%M%S}-{snapshot_id}")
    since = as_of - timedelta(seconds=spec.model.history_s) if spec.model.history_s else None
    scored = lake.read(event.table, since, as_of, snapshot_id=snapshots.get(event.table))
    scored = first_of_each(scored, spec.scored.key)
    asked = scored.select(pl.col(spec.scored.key).alias(ENTITY_KEY), EVENT_TIMESTAMP).with_row_index(ROW)
    known = labels(lake, spec, since, as_of, snapshots.get(told.table))
    outcomes = join_labels(asked, known, spec.label.horizon_s, as_of)
    if not outcomes.labelled_rows:
        late = f" ({outcomes.late_labels} came after the horizon of {spec.label.horizon_s} s)"
        raise UsageError(
            f"{spec.name}: no labelled row is known at {as_of:%Y-%m-%d %H:%M} UTC{late if outcomes.late_labels else ''}; "
            "ingest more history or choose a later --as-of"
        )
    frame = (
        # The event as it was, without its label: a pipeline's features must not be able to see that.
        historical(spec, settings, scored[outcomes.frame.get_column(ROW)], snapshots)
        .with_columns(outcomes.frame.get_column(LABEL))
        .sort(EVENT_TIMESTAMP, ENTITY_KEY)
    )
    return _parted(TrainingSet(spec.name, as_of, spec.features, frame, frame, snapshots), frame, spec)


def _parted(training_set: TrainingSet, rows: pl.DataFrame, spec: PipelineSpec) -> TrainingSet:
    """The training set with these rows: without a label, older than the holdout's stretch, and in it."""
    since = training_set.as_of - timedelta(seconds=spec.retrain.holdout_s)
    labelled = rows.drop_nulls(LABEL)
    older = pl.col(EVENT_TIMESTAMP) < since
    return replace(
        training_set,
        train=labelled.filter(older),
        holdout=labelled.filter(~older),
        unlabelled=rows.filter(pl.col(LABEL).is_null()),
    )


def meeting_contract(training_set: TrainingSet, spec: PipelineSpec) -> TrainingSet:
    """The training set without the rows that break the pipeline's contract, as they are not scored either.

    Raises:
        StageError: the set as a whole fails the contract, or could not be judged by it.
    """
    rows = all_rows(training_set)
    columns: dict[str, Kind] = {ENTITY_KEY: "any", EVENT_TIMESTAMP: "any", LABEL: "any"}
    judged = validate(rows, spec.contract, spec.name, columns | {f.name: f.kind for f in spec.features})
    if judged.verdict.status >= Status.ERROR:
        raise StageError(
            f"nothing was trained: the training set fails its contract: {judged.verdict.reason}; mend the source, or the "
            f"contract, which `perennial contract check {spec.name}` tries"
        )
    return replace(_parted(training_set, judged.valid, spec), left_out_rows=judged.quarantined.height)
