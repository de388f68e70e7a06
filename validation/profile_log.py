"""Hourly profiles of what was predicted, kept in the lake: a window of any length is a sum, and rows are counted once.

A row tells how many predictions it counted. Where the lake has more by now, because some came late or the hour was not
over, the hour is counted again and its newest row holds. So nothing has to be remembered of what was counted: killed at
any line, or run twice at once, the next look finds every hour that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import numpy as np
import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, rows_of
from validation.hours import COUNTS, DAY_H, HourlyProfiles, hours_of, matrix, moment_of
from validation.profile import ReferenceProfile, profile_by_hour
from validation.record import append_again

PROFILES = "profiles"


def profiles_between(
    lake: Lake,
    reference: ReferenceProfile,
    table: str,
    since: datetime,
    until: datetime,
    read: Callable[[datetime, datetime], pl.DataFrame],
    created: datetime,
) -> HourlyProfiles:
    """The hourly profiles of a table's rows, counting those hours that were not counted yet.

    Args:
        lake: of the pipeline.
        reference: whose bins.
        table: whose rows; they are only ever added.
        since: start of an hour.
        until: start of the hour after the last.
        read: (since, until) -> rows to count, with `event_timestamp` and the reference's columns; asked for a day at most.
        created: when this is done.
    """
    there = _rows_by_hour(lake, table, since, until)
    known = _stored(lake, reference, since, until)
    counted = there.join(known, on="hour", how="left", suffix="_counted")
    fresh = counted.filter(pl.col("rows").ne_missing(pl.col("rows_counted")))
    for _, hours in fresh.sort("hour").group_by(pl.col("hour") // DAY_H, maintain_order=True):
        wanted = hours.get_column("hour")
        first, last = int(wanted[0]), int(wanted[-1])
        rows = read(moment_of(first), moment_of(last + 1))
        rows = rows.filter(pl.Series(np.isin(hours_of(rows, EVENT_TIMESTAMP), wanted.to_numpy())))
        _keep(lake, reference, profile_by_hour(rows, reference, EVENT_TIMESTAMP), hours, created)
    if not fresh.is_empty():
        known = _stored(lake, reference, since, until)
    counts = matrix(known.get_column("counts")) if not known.is_empty() else np.zeros((0, len(reference.counts)))
    return HourlyProfiles(reference.fingerprint, known.get_column("hour").to_numpy(), counts.astype(np.int32))


def _rows_by_hour(lake: Lake, table: str, since: datetime, until: datetime) -> pl.DataFrame:
    if not lake.exists(table):
        return pl.DataFrame(schema={"hour": pl.Int64, "rows": pl.Int64})
    times = lake.read(table, since, until, columns=(EVENT_TIMESTAMP,))
    return _hourly(times).group_by("hour").agg(pl.len().cast(pl.Int64).alias("rows"))


def _stored(lake: Lake, reference: ReferenceProfile, since: datetime, until: datetime) -> pl.DataFrame:
    """`hour`, `rows` and `counts` of each hour that was counted, by hour."""
    if not lake.exists(PROFILES):
        return pl.DataFrame(schema={"hour": pl.Int64, "rows": pl.Int64, "counts": COUNTS})
    with lake.answering():
        found = (
            rows_of(lake.existing(PROFILES), since, until)
            .filter(pl.col("reference") == reference.fingerprint)
            .select(EVENT_TIMESTAMP, CREATED_TIMESTAMP, "rows", "counts")
            .collect()
        )
    return (
        _hourly(found)
        # Two that counted at once may have written in any order; the one that knew more rows knew all of the other's.
        .sort("hour", "rows", CREATED_TIMESTAMP)
        .unique("hour", keep="last", maintain_order=True)
        .select("hour", "rows", "counts")
    )


def _keep(
    lake: Lake, reference: ReferenceProfile, profiles: HourlyProfiles, rows: pl.DataFrame, created: datetime
) -> None:
    counted = pl.DataFrame(
        {"hour": profiles.hours, "counts": pl.Series(profiles.counts.astype(np.int32), dtype=COUNTS)}
    )
    empty = pl.lit([0] * len(reference.counts), dtype=COUNTS)
    at = pl.Datetime("us", "UTC")
    kept = rows.select("hour", "rows").join(counted, on="hour", how="left", maintain_order="left")
    append_again(
        lake,
        PROFILES,
        kept.select(
            pl.from_epoch(pl.col("hour") * 3600, "s").dt.replace_time_zone("UTC").cast(at).alias(EVENT_TIMESTAMP),
            pl.lit(reference.fingerprint).alias("reference"),
            "rows",
            # Rows that are not to be counted, such as copies, leave an hour empty; it was looked at all the same.
            pl.col("counts").fill_null(empty),
            pl.lit(created).cast(at).alias(CREATED_TIMESTAMP),
        ),
        partition_by=None,
    )


def _hourly(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns((pl.col(EVENT_TIMESTAMP).dt.epoch("s") // 3600).alias("hour"))
