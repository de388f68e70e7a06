"""Appends of what has happened: true whatever another writer commits, so one that came second is made again."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from features.lake import EVENT_TIMESTAMP, Lake
from perennial.errors import ConflictError

TRIES = 10


def append_again(
    lake: Lake,
    table: str,
    frame: pl.DataFrame,
    properties: Mapping[str, str] | None = None,
    partition_by: str | None = EVENT_TIMESTAMP,
) -> None:
    """`Lake.append`, and once more where another writer committed first.

    Raises:
        ConflictError: other writers committed first each time; nothing was kept.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            lake.append(table, frame, properties=properties, partition_by=partition_by)
        except ConflictError:
            if not tries_left:
                raise
        else:
            return
