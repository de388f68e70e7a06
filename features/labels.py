"""Outcomes: what was predicted, joined with what happened when it is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.store import ENTITY_KEY
from pipelines.spec import PipelineSpec

LABEL = "label"
LABEL_TIMESTAMP = "label_timestamp"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Outcomes:
    """Predictions with their truth as far as it is known.

    Attributes:
        frame: the predictions and `label` (boolean, null while it is not here).
        labelled_rows: rows whose label came.
        waiting_rows: rows whose label may still come.
        expired_rows: rows whose label will never come: its horizon has passed.
    """

    frame: pl.DataFrame
    labelled_rows: int
    waiting_rows: int
    expired_rows: int


def predictions(
    lake: Lake, since: datetime | None, until: datetime | None, columns: tuple[str, ...] = ("*",)
) -> pl.DataFrame:
    """Predictions by event time, [since, until), one a key: of two score runs at once, what was predicted first counts.

    Args:
        columns: columns that are wanted, `entity_key` and `created_timestamp` among them.

    Raises:
        StateError: there are no predictions yet.
    """
    made = lake.read(PREDICTIONS, since=since, until=until, columns=columns).sort(
        CREATED_TIMESTAMP, maintain_order=True
    )
    # Rows without a key are not one another's duplicates, and the contract must see each of them.
    return made.filter(pl.col(ENTITY_KEY).is_null() | pl.col(ENTITY_KEY).is_first_distinct())


def labels(
    lake: Lake, spec: PipelineSpec, since: datetime | None, as_of: datetime, snapshot_id: int | None = None
) -> pl.DataFrame:
    """Labels that were known at `as_of`: `entity_key`, `label`, `label_timestamp`, one row a key (the first that came).

    Args:
        since: events before it are not looked at; None = all.
        snapshot_id: of the label's table; None = as it is now.
    """
    event = spec.event(spec.label.topic)
    found = lake.read(event.table, since=since, until=as_of, snapshot_id=snapshot_id).sort(
        event.event_timestamp, "kafka_partition", "kafka_offset"
    )
    return (
        found.select(
            pl.col(spec.label.key).alias(ENTITY_KEY),
            spec.label.value(found).cast(pl.Boolean).alias(LABEL),
            pl.col(event.event_timestamp).alias(LABEL_TIMESTAMP),
        )
        .drop_nulls()
        .unique([ENTITY_KEY], keep="first", maintain_order=True)
    )


def outcomes(
    lake: Lake, spec: PipelineSpec, since: datetime, as_of: datetime, columns: tuple[str, ...] = ("*",)
) -> Outcomes:
    """Predictions of [since, as_of), each key once, with the labels known at `as_of`.

    Args:
        columns: columns of the predictions that are wanted, `entity_key`, `event_timestamp` and `created_timestamp` among
            them.
    """
    predicted = predictions(lake, since, as_of, columns)
    joined = predicted.join(labels(lake, spec, since, as_of), on=ENTITY_KEY, how="left", maintain_order="left")
    labelled = joined.get_column(LABEL).is_not_null()
    due = joined.get_column(EVENT_TIMESTAMP) + timedelta(seconds=spec.label.horizon_s) <= as_of
    return Outcomes(joined, int(labelled.sum()), int((~labelled & ~due).sum()), int((~labelled & due).sum()))
