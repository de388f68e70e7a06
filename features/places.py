"""Rows of a lake table by where they were in Kafka.

A filter with a term for each Kafka partition is worked out anew for each file by pyiceberg (0.12): 13 s for 100 partitions
and 100 files. So files are chosen by one range of offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

PARTITION, OFFSET = "kafka_partition", "kafka_offset"


def read_places(rows: pl.LazyFrame, ranges: Mapping[int, tuple[int, int]], columns: tuple[str, ...]) -> pl.DataFrame:
    """Rows whose offset is in the range of their Kafka partition, [begin, end).

    Args:
        rows: of a table with columns kafka_partition and kafka_offset.
        ranges: by partition; rows of others are left out.
        columns: names, or `*`.
    """
    ranges = {partition: (begin, end) for partition, (begin, end) in ranges.items() if begin < end}
    begins, ends = ([limits[side] for limits in ranges.values()] for side in (0, 1))
    partition, offset = pl.col(PARTITION), pl.col(OFFSET)
    inside = rows.filter(
        # By these two, files are passed over; by the others, rows.
        offset >= min(begins, default=0),
        offset < max(ends, default=0),
        offset >= partition.replace_strict(list(ranges), begins, default=None, return_dtype=pl.Int64),
        offset < partition.replace_strict(list(ranges), ends, default=None, return_dtype=pl.Int64),
    )
    return inside.select(*columns).collect()


def first_offsets(table: Table) -> dict[int, int]:
    """By Kafka partition an offset before which no file has a row, by the statistics of their columns."""
    found: dict[int, int] = {}
    for task in table.scan(selected_fields=(PARTITION, OFFSET)).plan_files():
        lowest, highest = _bounds(table, task.file, PARTITION)
        first, _ = _bounds(table, task.file, OFFSET)
        if lowest is None or highest is None or first is None:
            continue
        for partition in range(lowest, highest + 1):
            found[partition] = min(found.get(partition, first), first)
    return found


def event_spans(table: Table) -> list[tuple[int, int, int]]:
    """(first event time, last, rows) of every file that tells them in its statistics; times in microseconds since 1970."""
    found = []
    for task in table.scan(selected_fields=("event_timestamp",)).plan_files():
        first, last = _bounds(table, task.file, "event_timestamp")
        if first is not None and last is not None:
            found.append((first, last, task.file.record_count))
    return found


def _bounds(table: Table, file: DataFile, column: str) -> tuple[int | None, int | None]:
    from pyiceberg.conversions import from_bytes

    field = table.schema().find_field(column)
    read: Callable[[Any, bytes], Any] = from_bytes
    low, high = ((bounds or {}).get(field.field_id) for bounds in (file.lower_bounds, file.upper_bounds))
    return (
        None if low is None else read(field.field_type, low),
        None if high is None else read(field.field_type, high),
    )
