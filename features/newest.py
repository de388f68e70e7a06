"""The newest row of each key of a feature table, however many rows and keys there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, scan
from features.store import view_table
from pipelines.spec import FeatureView

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask

# What is held at once: rows while the newest of each key are found, and keys whose newest row is known.
ROWS_AT_ONCE = 500_000
KEYS_AT_ONCE = 1_000_000


def newest_rows(lake: Lake, view: FeatureView, wanted: pl.Expr | None = None) -> Iterator[tuple[pl.Expr, pl.DataFrame]]:
    """The newest row of every key of a view's lake table, by event time and then by created time, in slices of bounded size.

    Args:
        lake: the pipeline's lake.
        view: the view.
        wanted: which keys, as an expression on the key; default all.

    Returns:
        For each slice, which keys are in it (an expression on the key), and their newest rows. There is always one.
    """
    key = pl.col(view.entity)
    types = {
        view.entity: pl.String(),
        EVENT_TIMESTAMP: pl.Datetime("us", "UTC"),
        CREATED_TIMESTAMP: pl.Datetime("us", "UTC"),
    }
    schema = pl.Schema({**types, **{a.name: pl.Float64() for a in view.aggregates}})
    slices = deque([(0, 1)])
    while slices:
        part, of = slices.popleft()
        newest, waiting, height = schema.to_frame(), [], 0
        for batch in _batches(lake, view_table(view), tuple(schema)):
            waiting.append(batch.filter(_slice(key, part, of), wanted if wanted is not None else pl.lit(True)))
            height += waiting[-1].height
            if height >= ROWS_AT_ONCE:
                newest, waiting, height = _reduced(newest, waiting, view), [], 0
            while newest.height > KEYS_AT_ONCE:
                # Too many keys at once: half of them wait for a pass of their own.
                slices.append((part + of, 2 * of))
                of *= 2
                newest = newest.filter(_slice(key, part, of))
                waiting = [frame.filter(_slice(key, part, of)) for frame in waiting]
        yield _slice(key, part, of), _reduced(newest, waiting, view)


def _slice(key: pl.Expr, part: int, of: int) -> pl.Expr:
    return key.hash(0) % of == part


def _reduced(newest: pl.DataFrame, more: Sequence[pl.DataFrame], view: FeatureView) -> pl.DataFrame:
    rows = pl.concat([newest, *more], how="vertical_relaxed")
    return rows.sort(EVENT_TIMESTAMP, CREATED_TIMESTAMP).unique([view.entity], keep="last", maintain_order=True)


def _batches(lake: Lake, table: str, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """A table's rows, a few files at a time; a column it does not have yet is null. No table: nothing."""
    from pyiceberg.io.pyarrow import ArrowScan

    if not lake.exists(table):
        return
    target = lake.existing(table)
    known = tuple(name for name in columns if name in target.schema().column_names)
    wanted = scan(target, columns=known)
    with lake.answering():
        tasks = list(wanted.plan_files())
    reader = ArrowScan(target.metadata, target.io, wanted.projection(), wanted.row_filter)
    # Not by pyiceberg's own batches: it reads all files ahead, and holds what is not taken yet (0.12).
    for some in _groups(tasks):
        with lake.answering():
            frame = pl.DataFrame(reader.to_table(some))
        yield frame.with_columns(pl.lit(None).alias(n) for n in columns if n not in known).select(columns)


def _groups(tasks: Iterable[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """Files of together at most ROWS_AT_ONCE rows; a larger one is by itself."""
    group: list[FileScanTask] = []
    rows = 0
    for task in tasks:
        rows += task.file.record_count
        if group and rows > ROWS_AT_ONCE:
            yield group
            group, rows = [], task.file.record_count
        group.append(task)
    if group:
        yield group
