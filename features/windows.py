"""Event-time aggregations: the same code for a micro-batch of the stream and for a backfill of years."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from features.arrival import LATE_S, TOO_LATE, counted
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, IS_DUPLICATE
from features.places import OFFSET, PARTITION
from pipelines.spec import Aggregate, EventSpec, FeatureView

IS_NEW = "_is_new"
KEY, EVENTS = "_key", "_events"
SUM, COUNT, LAST = "_sum_", "_count_", "_last_"
PLACE = (PARTITION, OFFSET)


def inputs(view: FeatureView, event: EventSpec) -> tuple[str, ...]:
    """The columns of a topic's lake table that a view's features are made of."""
    fields = (a.field for a in view.aggregates)
    marks = (LATE_S, TOO_LATE, IS_DUPLICATE)
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
    kept = counted(events, event).filter(pl.col(view.key).is_not_null())
    new = pl.col(IS_NEW) if IS_NEW in kept.columns else pl.lit(value=True)
    # Feast knows entities by text.
    kept = kept.with_columns(new.alias(IS_NEW), pl.col(view.key).cast(pl.String).alias(KEY))
    first = kept.filter(IS_NEW).get_column(EVENT_TIMESTAMP).min()
    if not isinstance(first, datetime):  # nothing new: no row can have changed
        kept, first = kept.clear(), datetime.min.replace(tzinfo=UTC)
    order = list(dict.fromkeys((EVENT_TIMESTAMP, *event.event_id, *PLACE)))
    # What was before the first new event has its rows already.
    rows = kept.filter(pl.col(EVENT_TIMESTAMP) >= first).select(KEY, EVENT_TIMESTAMP).unique()
    changed = pl.lit(value=False)
    for window_s in sorted({a.window_s for a in view.aggregates}):
        aggregates = [a for a in view.aggregates if a.window_s == window_s]
        window = timedelta(seconds=window_s)
        parts = _parts(kept, aggregates, first, window, order)
        within = (
            parts.rolling(EVENT_TIMESTAMP, period=window, group_by=KEY)
            .agg(
                *(_expression(a).alias(a.name) for a in aggregates),
                pl.col(IS_NEW).any().alias(f"_new_{window_s}"),
                # No clock is in it: a row that a killed ingest left online must not be newer than the one that corrects it.
                (pl.col(EVENT_TIMESTAMP).last() + pl.duration(microseconds=pl.col(EVENTS).sum())).alias(
                    f"_created_{window_s}"
                ),
            )
            # Rows of one key and time hold the same window, so any of them will do.
            .unique([KEY, EVENT_TIMESTAMP])
        )
        rows = rows.join(within, on=[KEY, EVENT_TIMESTAMP], how="left")
        changed = changed | pl.col(f"_new_{window_s}")
    return (
        rows.filter(changed)
        .with_columns(pl.max_horizontal(pl.col("^_created_.*$")).alias(CREATED_TIMESTAMP))
        .select(pl.col(KEY).alias(view.entity), EVENT_TIMESTAMP, CREATED_TIMESTAMP, *(a.name for a in view.aggregates))
        .sort(EVENT_TIMESTAMP, view.entity)
    )


def _parts(
    events: pl.DataFrame, aggregates: Sequence[Aggregate], first: datetime, window: timedelta, order: Sequence[str]
) -> pl.DataFrame:
    """What the windows of the rows from `first` on are made of, sorted by event time.

    Events that every one of these windows holds become one part a key: a stream adds a few events at a time to windows of
    many, and would add up all of them again for each row.

    Returns:
        A part a row: `_key`, `event_timestamp`, `_is_new`, `_events` (how many events it is made of), and of each field, as
        far as a function needs them, `_sum_F`, `_count_F` (of values that are not null) and `_last_F` (the last of them).
    """
    at = pl.col(EVENT_TIMESTAMP)
    reached = events.filter(at > first - window) if first > datetime.min.replace(tzinfo=UTC) + window else events
    newest = reached.get_column(EVENT_TIMESTAMP).max()
    single = [pl.lit(1, pl.Int64).alias(EVENTS)]
    counts = sorted({a.field for a in aggregates if a.function != "last"})
    sums = sorted({a.field for a in aggregates if a.function in ("mean", "rate")})
    lasts = sorted({a.field for a in aggregates if a.function == "last"})
    single += [pl.col(f).is_not_null().cast(pl.Int64).alias(COUNT + f) for f in counts]
    single += [pl.col(f).cast(pl.Float64).fill_null(0.0).alias(SUM + f) for f in sums]
    single += [pl.col(f).cast(pl.Float64).alias(LAST + f) for f in lasts]
    columns = [KEY, EVENT_TIMESTAMP, IS_NEW, *(e.meta.output_name() for e in single)]
    in_all = (at > newest - window) & (at < first) if isinstance(newest, datetime) else pl.lit(value=False)
    apart = reached.filter(~in_all).sort(order).with_columns(*single).select(columns)
    together = reached.filter(in_all)
    if not together.height:
        return apart
    merged = together.group_by(KEY).agg(
        at.max(),
        pl.lit(value=False).alias(IS_NEW),
        pl.len().cast(pl.Int64).alias(EVENTS),
        *(pl.col(f).count().cast(pl.Int64).alias(COUNT + f) for f in counts),
        *(pl.col(f).cast(pl.Float64).sum().alias(SUM + f) for f in sums),
    )
    for field in lasts:
        known = together.filter(pl.col(field).is_not_null())
        # Only those of the last moment need to be put in order.
        last = known.filter(at == at.max().over(KEY)).sort(order)
        last = last.group_by(KEY).agg(pl.col(field).cast(pl.Float64).last().alias(LAST + field))
        merged = merged.join(last, on=KEY, how="left")
    return pl.concat([apart, merged.select(columns)]).sort(EVENT_TIMESTAMP, maintain_order=True)


def lookback(view: FeatureView) -> timedelta:
    """How far back of an event its own windows, and those it can change, reach."""
    return timedelta(seconds=max(a.window_s for a in view.aggregates))


def _expression(aggregate: Aggregate) -> pl.Expr:
    if aggregate.function == "last":
        return pl.col(LAST + aggregate.field).drop_nulls().last()
    count = pl.col(COUNT + aggregate.field).sum()
    if aggregate.function == "count":
        return count.cast(pl.Float64)
    return pl.when(count > 0).then(pl.col(SUM + aggregate.field).sum() / count)
