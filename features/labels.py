"""Outcomes: what was predicted, joined with what happened when it is known.

A prediction is (entity key, event time): the same key may be asked about again at another time. Its label is the first
one of its key from its own time on, up to the pipeline's horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, first_distinct, rows_of, without_duplicates
from features.store import ENTITY_KEY
from pipelines.spec import PipelineSpec

LABEL = "label"
LABEL_TIMESTAMP = "label_timestamp"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Outcomes:
    """Predictions with their truth as far as it is known. Labelled, waiting and expired rows are together all of them.

    Attributes:
        frame: the predictions by event time, with `label` (boolean) and `label_timestamp`, both null while there is none.
        labelled_rows: rows whose label came within the horizon.
        waiting_rows: rows whose label may still come.
        expired_rows: rows whose label will never count: the horizon has passed.
        late_labels: labels that came for an expired row, too late, and for no other row in time. Many of them say that
            the horizon is too short.
    """

    frame: pl.DataFrame
    labelled_rows: int
    waiting_rows: int
    expired_rows: int
    late_labels: int

    @property
    def counts(self) -> dict[str, int]:
        """Everything but the rows themselves."""
        return {
            "labelled_rows": self.labelled_rows,
            "waiting_rows": self.waiting_rows,
            "expired_rows": self.expired_rows,
            "late_labels": self.late_labels,
        }


def predictions(
    lake: Lake, since: datetime | None, until: datetime | None, columns: tuple[str, ...] = ("*",)
) -> pl.DataFrame:
    """Predictions by event time, [since, until), each once.

    Args:
        columns: columns that are wanted; `entity_key`, `event_timestamp` and `created_timestamp` among them.

    Raises:
        StateError: there are no predictions yet.
    """
    return first_made(lake.read(PREDICTIONS, since=since, until=until, columns=columns))


def lazy_predictions(lake: Lake, since: datetime | None, until: datetime | None) -> pl.LazyFrame:
    """Predictions of [since, until) as they are stored now, in which an older version may have kept some twice (`first_made`).

    Only what is asked of them is read. To be collected within `lake.answering()`.

    Raises:
        StateError: there are no predictions yet.
    """
    return rows_of(lake.existing(PREDICTIONS), since, until)


def first_made(made: pl.DataFrame) -> pl.DataFrame:
    """Of the rows of each prediction (key and event time) the one made first: score runs of an older version could both make one.

    Rows without a key are not one another's duplicates, and the contract must see each of them.
    """
    return made.sort(CREATED_TIMESTAMP, maintain_order=True).filter(first_distinct(ENTITY_KEY))


def labels(
    lake: Lake, spec: PipelineSpec, since: datetime | None, as_of: datetime, snapshot_id: int | None = None
) -> pl.DataFrame:
    """Labels of [since, as_of) by event time, as `labels_of` tells them.

    Args:
        since: events before it are not looked at; None = all.
        snapshot_id: of the label's table; None = as it is now.

    Raises:
        StateError: the label's topic was never taken in.
    """
    event = spec.event(spec.label.topic)
    return labels_of(lake.read(event.table, since=since, until=as_of, snapshot_id=snapshot_id), spec)


def labels_of(events: pl.DataFrame, spec: PipelineSpec) -> pl.DataFrame:
    """What label events say: `entity_key`, `label`, `label_timestamp`, by time, one row a key and time.

    An event without a key or value is no label, nor is one that ingest marked as a duplicate. Of labels of one key and
    moment the first on the topic counts.

    Args:
        events: events of the label's topic as the lake keeps them, in any order.
    """
    event = spec.event(spec.label.topic)
    found = without_duplicates(events).sort(event.event_timestamp, "kafka_partition", "kafka_offset")
    return (
        found.select(
            pl.col(spec.label.key).alias(ENTITY_KEY),
            spec.label.value(found).cast(pl.Boolean).alias(LABEL),
            pl.col(event.event_timestamp).alias(LABEL_TIMESTAMP),
        )
        .drop_nulls()
        .unique([ENTITY_KEY, LABEL_TIMESTAMP], keep="first", maintain_order=True)
    )


def outcomes(
    lake: Lake, spec: PipelineSpec, since: datetime | None, as_of: datetime, columns: tuple[str, ...] = ("*",)
) -> Outcomes:
    """Predictions of [since, as_of), each once, with the labels known at `as_of`.

    Args:
        since: predictions before it are left out; None = none.
        columns: columns of the predictions that are wanted; `entity_key`, `event_timestamp` and `created_timestamp` among
            them.

    Raises:
        StateError: there are no predictions yet, or the label's topic was never taken in.
    """
    predicted = predictions(lake, since, as_of, columns)
    return join_labels(predicted, labels(lake, spec, since, as_of), spec.label.horizon_s, as_of)


def join_labels(asked: pl.DataFrame, told: pl.DataFrame, horizon_s: int, as_of: datetime) -> Outcomes:
    """Each row's label: the first of its key at t <= label time <= t + horizon, t being the row's own time.

    A label before t belongs to an earlier row of the key. Several rows may share one label.

    Args:
        asked: `entity_key` and `event_timestamp`, each pair once, and any other columns, in any order.
        told: labels before `as_of` as of `labels_of`, from the first row's time on.
        horizon_s: seconds after which a label no longer counts.
        as_of: the moment of the question. A label of this very moment is not known yet, so a row whose horizon ends now
            still waits.
    """
    horizon = timedelta(seconds=horizon_s)
    joined = asked.sort(EVENT_TIMESTAMP, maintain_order=True).join_asof(
        told,
        left_on=EVENT_TIMESTAMP,
        right_on=LABEL_TIMESTAMP,
        by=ENTITY_KEY,
        strategy="forward",
        coalesce=False,
        check_sortedness=False,  # both are sorted; Polars cannot tell within keys
    )
    waited = joined.get_column(LABEL_TIMESTAMP) - joined.get_column(EVENT_TIMESTAMP)
    in_time = (waited <= horizon).fill_null(value=False)
    which = [ENTITY_KEY, LABEL_TIMESTAMP]
    late = joined.filter(waited > horizon).select(which).unique()
    late = late.join(joined.filter(in_time).select(which), on=which, how="anti")
    over = joined.get_column(EVENT_TIMESTAMP) + horizon < as_of
    return Outcomes(
        frame=joined.with_columns(pl.when(in_time).then(pl.col(LABEL, LABEL_TIMESTAMP))),
        labelled_rows=int(in_time.sum()),
        waiting_rows=int((~in_time & ~over).sum()),
        expired_rows=int((~in_time & over).sum()),
        late_labels=late.height,
    )
