"""Rows that did not meet their contract, kept in the lake with what they failed.

A row is quarantined by one contract: a changed one tries it again. What is here has no prediction, unless another contract
let it pass later.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from features.lake import APPEND_TRIES, CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.store import ENTITY_KEY
from perennial.errors import ConflictError

QUARANTINE = "quarantine"
CONTRACT = "contract"
"""The column that holds the fingerprint of the contract a row was judged by."""
ROW = (ENTITY_KEY, EVENT_TIMESTAMP)


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
    if not rows.height:
        return 0
    told = rows.with_columns(
        pl.lit(contract).alias(CONTRACT),
        pl.lit(created).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    )
    for tries_left in reversed(range(APPEND_TRIES)):
        # The table's one position counts its rows: who kept some since this look is noticed, and theirs may be the same.
        known = lake.offsets(QUARANTINE)
        new = without(told, quarantined_keys(lake, contract, *_range(told)))
        try:
            if new.height:
                lake.append(QUARANTINE, new, {0: known.get(0, 0) + new.height}, read_from=known)
        except ConflictError:
            if not tries_left:
                raise
        else:
            return new.height
    raise AssertionError("unreachable")


def quarantined_keys(lake: Lake, contract: str, since: datetime | None, until: datetime | None) -> pl.DataFrame:
    """Key and event time of the rows of [since, until) that failed that contract."""
    # A table of an older version does not say by which contract.
    if CONTRACT not in lake.columns(QUARANTINE):
        return pl.DataFrame(schema={ENTITY_KEY: pl.String(), EVENT_TIMESTAMP: pl.Datetime("us", "UTC")})
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


def without(rows: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """The rows whose key and event time are not among the others', in order. Rows without a key are told apart by time."""
    return rows.join(others.select(ROW), on=ROW, how="anti", nulls_equal=True, maintain_order="left")


def _range(rows: pl.DataFrame) -> tuple[datetime | None, datetime | None]:
    """The event times of the rows: from the first on, to just after the last."""
    first, last = rows.select(
        pl.col(EVENT_TIMESTAMP).min().alias("first"),
        (pl.col(EVENT_TIMESTAMP).max() + pl.duration(microseconds=1)).alias("last"),
    ).row(0)
    return first, last
