"""Rows of a lake table by where they were in Kafka.

One filter of pyiceberg (0.12) with a term for each Kafka partition is worked out anew for each file: 13 s for 100 partitions
and 100 files. So files are chosen here, by the same statistics, and rows by Polars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

PARTITION, OFFSET = "kafka_partition", "kafka_offset"
BEGIN, END = "_begin", "_end"


def read_places(
    table: Table, ranges: Mapping[int, tuple[int, int]], columns: tuple[str, ...], within: str = ""
) -> pl.DataFrame:
    """Rows whose offset is in the range of their Kafka partition, [begin, end).

    Args:
        table: with columns kafka_partition and kafka_offset.
        ranges: by partition; rows of others are left out.
        columns: names, or `*`.
        within: what else must hold of the rows, as pyiceberg's filter; empty = nothing.
    """
    from pyiceberg.io.pyarrow import ArrowScan

    ranges = {partition: (begin, end) for partition, (begin, end) in ranges.items() if begin < end}
    begins, ends = zip(*ranges.values(), strict=True) if ranges else ((0,), (0,))
    every = "*" in columns
    wanted = columns if every else tuple(dict.fromkeys((*columns, PARTITION, OFFSET)))
    places = f"{OFFSET} >= {min(begins)} and {OFFSET} < {max(ends)}"
    scan = table.scan(" and ".join(filter(None, (places, within))), selected_fields=wanted)
    tasks = [task for task in scan.plan_files() if may_hold(table, task.file, ranges)]
    arrow = ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter).to_table(tasks)
    rows = pl.DataFrame(arrow)
    limits = pl.DataFrame(
        {PARTITION: list(ranges), BEGIN: list(begins)[: len(ranges)], END: list(ends)[: len(ranges)]},
        schema={PARTITION: rows.schema[PARTITION], BEGIN: pl.Int64, END: pl.Int64},
    )
    inside = rows.join(limits, on=PARTITION, how="inner", maintain_order="left").filter(
        pl.col(OFFSET) >= pl.col(BEGIN), pl.col(OFFSET) < pl.col(END)
    )
    return inside.drop(BEGIN, END) if every else inside.select(columns)


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


def may_hold(table: Table, file: DataFile, ranges: Mapping[int, tuple[int, int]]) -> bool:
    """Whether, by the statistics of its columns, a file may have a row in one of the ranges."""
    lowest, highest = _bounds(table, file, PARTITION)
    first, last = _bounds(table, file, OFFSET)
    return any(
        (lowest is None or lowest <= partition)
        and (highest is None or partition <= highest)
        and (first is None or first < end)
        and (last is None or begin <= last)
        for partition, (begin, end) in ranges.items()
    )


def _bounds(table: Table, file: DataFile, column: str) -> tuple[int | None, int | None]:
    from pyiceberg.conversions import from_bytes

    field = table.schema().find_field(column)
    read: Callable[[Any, bytes], Any] = from_bytes
    low, high = ((bounds or {}).get(field.field_id) for bounds in (file.lower_bounds, file.upper_bounds))
    return (
        None if low is None else read(field.field_type, low),
        None if high is None else read(field.field_type, high),
    )
