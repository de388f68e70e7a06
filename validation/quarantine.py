"""Rows that did not meet their contract, kept in the lake with what they failed.

A row is quarantined by one contract: a changed one tries it again. What is here has no prediction, unless another contract
let it pass later.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

import polars as pl

from features.labels import PREDICTIONS
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.once import ROW, append_once, no_rows, without

QUARANTINE = "quarantine"
CONTRACT = "contract"
"""The column that holds the fingerprint of the contract a row was judged by."""


def keep_aside(lake: Lake, rows: pl.DataFrame, contract: str, created: datetime) -> int:
    """Quarantine rows, each once a contract, whoever else does it at the same time and however often it was killed.

    Args:
        lake: the pipeline's lake.
        rows: feature rows with `failed_expectation`.
        contract: fingerprint of the contract they failed.
        created: when (UTC), kept as `created_timestamp`.

    Returns:
        How many were not there yet.

    Raises:
        ConflictError: other runs kept theirs in between, again and again.
    """
    told = rows.with_columns(
        pl.lit(contract).alias(CONTRACT),
        pl.lit(created).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    )
    return append_once(lake, QUARANTINE, told, lambda since, until: quarantined_keys(lake, contract, since, until))


def quarantined_keys(lake: Lake, contract: str, since: datetime | None, until: datetime | None) -> pl.DataFrame:
    """Key and event time of the rows of [since, until) that failed that contract."""
    # A table of an older version does not say by which contract.
    if CONTRACT not in lake.columns(QUARANTINE):
        return no_rows()
    kept = lake.read(QUARANTINE, since, until, columns=(*ROW, CONTRACT))
    return kept.filter(pl.col(CONTRACT) == contract).select(ROW)


def quarantined(lake: Lake, since: datetime | None, until: datetime | None) -> pl.DataFrame:
    """Quarantined rows of [since, until), as the newest contract that refused them kept them.

    Returns:
        A frame without columns if there never was one.
    """
    if not lake.exists(QUARANTINE):
        return pl.DataFrame()
    kept = lake.read(QUARANTINE, since, until).sort(CREATED_TIMESTAMP, descending=True, maintain_order=True)
    if CONTRACT not in kept.columns:
        kept = kept.with_columns(pl.lit(None, pl.String).alias(CONTRACT))
    return kept.filter(pl.col(CONTRACT).eq_missing(pl.col(CONTRACT).first().over(ROW)))


def still_aside(lake: Lake, as_of: datetime) -> pl.DataFrame:
    """Quarantined rows of events up to a moment that have no prediction to this day, newest event first.

    Returns:
        A frame without columns if there never was one.
    """
    kept = quarantined(lake, None, as_of + timedelta(microseconds=1))
    if kept.height and lake.exists(PREDICTIONS):
        first, last = kept.select(
            pl.col(EVENT_TIMESTAMP).min().alias("a"), pl.col(EVENT_TIMESTAMP).max().alias("b")
        ).row(0)
        kept = without(kept, lake.read(PREDICTIONS, first, last + timedelta(microseconds=1), ROW))
    return kept.sort(EVENT_TIMESTAMP, descending=True, maintain_order=True) if kept.height else kept


def failures(told: str, columns: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Each expectation that a row failed, with its column.

    Args:
        told: the row's `failed_expectation`.
        columns: of the row.
    """
    found: list[str] = []
    for part in told.split("; "):
        if found and part.partition(" ")[0] not in columns:  # of a set's value or a pattern
            found[-1] += f"; {part}"
        else:
            found.append(part)
    return tuple((one, one.partition(" ")[0]) for one in found)
