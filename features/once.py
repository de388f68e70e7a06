"""Rows of a key and a moment, appended once, however many writers there are and however often they were killed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import polars as pl

from features.lake import APPEND_TRIES, EVENT_TIMESTAMP, Lake
from features.store import ENTITY_KEY
from perennial.errors import ConflictError

ROW = (ENTITY_KEY, EVENT_TIMESTAMP)
There = Callable[[datetime | None, datetime | None], pl.DataFrame]


def append_once(lake: Lake, table: str, rows: pl.DataFrame, there: There) -> int:
    """Append the rows that are not there yet.

    Args:
        lake: the pipeline's lake.
        table: its table. Its one position counts its rows, by which writers notice one another.
        rows: `entity_key`, `event_timestamp` and whatever else. Rows without a key are told apart by their time alone, and
            those of one call are all kept.
        there: reads key and event time of what the table holds of [since, until); nothing if there is no table.

    Returns:
        How many were appended.

    Raises:
        ConflictError: other writers kept committing first.
    """
    if not rows.height:
        return 0
    since, until = rows.select(
        pl.col(EVENT_TIMESTAMP).min().alias("since"),
        (pl.col(EVENT_TIMESTAMP).max() + pl.duration(microseconds=1)).alias("until"),
    ).row(0)
    for tries_left in reversed(range(APPEND_TRIES)):
        # Before the look: who appends between it and the commit has moved the position by then.
        known = lake.offsets(table)
        new = without(rows, there(since, until))
        try:
            if new.height:
                lake.append(table, new, {0: known.get(0, 0) + new.height}, read_from=known)
        except ConflictError:
            if not tries_left:
                raise
        else:
            return new.height
    raise AssertionError("unreachable")


def without(rows: pl.DataFrame, others: pl.DataFrame, key: str = ENTITY_KEY) -> pl.DataFrame:
    """The rows whose key and event time are not among the others', in order; a missing key is one, too.

    Args:
        rows: with the columns `key` and `event_timestamp`.
        others: `entity_key` and `event_timestamp`.
        key: the rows' own name of the key.
    """
    return rows.join(
        others.select(ROW),
        left_on=[key, EVENT_TIMESTAMP],
        right_on=ROW,
        how="anti",
        nulls_equal=True,  # or an event without a key would be scored again by every run
        maintain_order="left",
    )


def no_rows() -> pl.DataFrame:
    """Key and event time of nothing."""
    return pl.DataFrame(schema={ENTITY_KEY: pl.String(), EVENT_TIMESTAMP: pl.Datetime("us", "UTC")})
