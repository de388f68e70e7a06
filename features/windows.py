"""Event-time aggregations: the same code for a micro-batch of the stream and for a backfill of years."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from features.arrival import LATE_S, counted
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, IS_DUPLICATE
from features.places import OFFSET, PARTITION
from pipelines.spec import Aggregate, EventSpec, FeatureView

IS_NEW = "_is_new"
PLACE = (PARTITION, OFFSET)


def inputs(view: FeatureView, event: EventSpec) -> tuple[str, ...]:
    """The columns of a topic's lake table that a view's features are made of."""
    fields = (a.field for a in view.aggregates)
    marks = (LATE_S, IS_DUPLICATE)
    return tuple(dict.fromkeys((view.key, EVENT_TIMESTAMP, *event.event_id, *fields, *PLACE, *marks)))


def mark_new(known: pl.DataFrame, new: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """New events and those known before them, as far as they have the same keys; `_is_new` says which is which."""
    touched = new.get_column(view.key).unique()
    of_same_keys = known.filter(pl.col(view.key).is_in(touched.implode()))
    return pl.concat(
        [
            of_same_keys.with_columns(pl.lit(value=False).alias(IS_NEW)),
            new.with_columns(pl.lit(value=True).alias(IS_NEW)),
        ]
    )


def build_features(events: pl.DataFrame, view: FeatureView, event: EventSpec) -> pl.DataFrame:
    """The value of each aggregate of a view right after each event.

    A window is (t - window, t] in event time. Neither the order of the rows nor how they were split into batches changes
    the result.

    Args:
        events: events of the view's topic with the columns `inputs`. Copies and those that came too late are left out.
            A boolean column `_is_new`, where there is one, marks those not seen before: then only rows whose value they
            can change come back.
        view: the features.
        event: what the events look like.

    Returns:
        One row per (entity, event_timestamp): the entity's key, `event_timestamp`, `created_timestamp` and one column per
        aggregate. Sorted by event time. Events without a key are left out. Of two rows of one key and time the one that
        knows more events is the newer, whoever made it and whatever its clock: its `created_timestamp` is the event time,
        and a microsecond more for each event in its longest window.
    """
    new = pl.col(IS_NEW) if IS_NEW in events.columns else pl.lit(value=True)
    ordered = (
        # Feast knows entities by text.
        counted(events, event)
        .with_columns(new.alias(IS_NEW), pl.col(view.key).cast(pl.String))
        .filter(pl.col(view.key).is_not_null())
        .sort(list(dict.fromkeys((EVENT_TIMESTAMP, *event.event_id, *PLACE))))
    )
    rows = ordered.select(pl.col(view.key).alias(view.entity), EVENT_TIMESTAMP).unique(maintain_order=True)
    changed = pl.lit(False)
    for window_s in sorted({a.window_s for a in view.aggregates}):
        flag, created = f"_new_{window_s}", f"_created_{window_s}"
        within = (
            ordered.rolling(EVENT_TIMESTAMP, period=timedelta(seconds=window_s), group_by=view.key)
            .agg(
                *(_expression(a).alias(a.name) for a in view.aggregates if a.window_s == window_s),
                pl.col(IS_NEW).any().alias(flag),
                # No clock is in it: a row that a killed ingest left online must not be newer than the one that corrects it.
                (pl.col(EVENT_TIMESTAMP).last() + pl.duration(microseconds=pl.len())).alias(created),
            )
            # Rows of one key and time hold the same window, so any of them will do.
            .unique([view.key, EVENT_TIMESTAMP])
            .rename({view.key: view.entity} if view.key != view.entity else {})
        )
        rows = rows.join(within, on=[view.entity, EVENT_TIMESTAMP], how="left")
        changed = changed | pl.col(flag)
    return (
        rows.filter(changed)
        .with_columns(pl.max_horizontal(pl.col("^_created_.*$")).alias(CREATED_TIMESTAMP))
        .select(view.entity, EVENT_TIMESTAMP, CREATED_TIMESTAMP, *(a.name for a in view.aggregates))
        .sort(EVENT_TIMESTAMP, view.entity)
    )


def lookback(view: FeatureView) -> timedelta:
    """How far back of an event its own windows, and those it can change, reach."""
    return timedelta(seconds=max(a.window_s for a in view.aggregates))


def _expression(aggregate: Aggregate) -> pl.Expr:
    column = pl.col(aggregate.field)
    if aggregate.function == "count":
        return column.count().cast(pl.Float64)
    if aggregate.function == "last":
        return column.drop_nulls().last().cast(pl.Float64)
    return column.cast(pl.Float64).mean()
