"""Rows that did not meet their contract, kept in the lake with what they failed.

A row is quarantined by one contract: a changed one tries it again. What is here has no prediction, unless another contract
let it pass later.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from features.lake import CREATED_TIMESTAMP, Lake
from features.once import ROW, append_once, no_rows

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
