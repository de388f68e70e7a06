"""Few large files instead of many small ones, with the same rows.

Each commit is whole or not at all: killed at any line, a compaction leaves a table that reads the same, and is run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.places import OFFSET, PARTITION
from features.snapshots import told
from perennial.errors import ConflictError, StateError

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table

TARGET_BYTES, TARGET_ROWS = 128 * 2**20, 2_000_000  # of a file; rows, because they are in memory while it is written
FULL = 0.75  # of either: a file that is left alone
FEWEST_FILES = 4  # in a day partition, before they are worth a rewrite
COMMIT_BYTES = 2**30
COMMIT_TRIES = 10


@dataclass(frozen=True)
class Compaction:
    """What a compaction did to a table.

    Attributes:
        table: its name.
        files_before: data files before.
        files_after: data files after.
        rewritten_rows: rows that were read and written again.
        commits: in how many commits; 0 if there was nothing to do.
    """

    table: str
    files_before: int
    files_after: int
    rewritten_rows: int
    commits: int


def compact(lake: Lake, table: str) -> Compaction:
    """Write the small files of each day into few large ones, with the same rows, sorted by event time.

    By event time, because the reader that looks into a day looks for hours: features look back, scoring asks for what is
    new. Places in Kafka rise with event time within a partition, so a range of them is mostly in one of a day's files, too;
    sorted by place, an hour would be in all of them. What reads the newest places reads files that are not compacted yet.

    Memory: one file's rows at a time, at most TARGET_ROWS.

    Raises:
        ConflictError: another program rewrote the same files first, or others kept committing; the rows are all there.
        StateError: there is no such table.
        UnreachableError: the catalog or S3 does not answer.
    """
    target = lake.existing(table)
    with lake.answering():
        tasks = list(target.scan().plan_files())
        old: list[DataFile] = []
        new: list[DataFile] = []
        gone = made = rows = commits = 0
        groups = list(groups_to_rewrite(target, tasks))
        for number, group in enumerate(groups, 1):
            new.append(_rewritten(target, group))
            old += [task.file for task in group]
            if number == len(groups) or sum(file.file_size_in_bytes for file in old) >= COMMIT_BYTES:
                _replace(lake, table, old, new)
                gone, made, commits = gone + len(old), made + len(new), commits + 1
                rows += sum(file.record_count for file in new)
                old, new = [], []
    return Compaction(table, len(tasks), len(tasks) - gone + made, rows, commits)


def groups_to_rewrite(table: Table, tasks: Iterable[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """The files of a table that become one file each, in order of event time within a partition.

    Files that are large enough, that have rows deleted from them, or of another partitioning are left alone.
    """
    by_partition: dict[Any, list[FileScanTask]] = defaultdict(list)
    for task in tasks:
        file = task.file
        small = file.file_size_in_bytes < FULL * TARGET_BYTES and file.record_count < FULL * TARGET_ROWS
        if small and not task.delete_files and file.spec_id == table.spec().spec_id:
            by_partition[file.partition].append(task)
    first = _first_value(table)
    for found in by_partition.values():
        group: list[FileScanTask] = []
        size = rows = 0
        for task in sorted(found, key=lambda task: (first(task.file), task.file.file_path)):
            size, rows = size + task.file.file_size_in_bytes, rows + task.file.record_count
            if size > TARGET_BYTES or rows > TARGET_ROWS:
                if len(group) >= FEWEST_FILES:
                    yield group
                group, size, rows = [], task.file.file_size_in_bytes, task.file.record_count
            group.append(task)
        if len(group) >= FEWEST_FILES:
            yield group


def _first_value(table: Table) -> Callable[[DataFile], Any]:
    """A function from a file to its earliest event time, from the statistics of its columns."""
    from pyiceberg.conversions import from_bytes

    field = next((f for f in table.schema().fields if f.name == EVENT_TIMESTAMP), None)
    if field is None:
        return lambda _: 0
    kind: Any = field.field_type
    return lambda file: from_bytes(kind, (file.lower_bounds or {}).get(field.field_id) or bytes(8))


def _rewritten(table: Table, group: list[FileScanTask]) -> DataFile:
    """A new file, not yet in the table, with the rows of others.

    Raises:
        StateError: the rows that were read are not those that the table counts.
    """
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files

    frame = pl.from_arrow(ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue()).to_table(group))
    expected = sum(task.file.record_count for task in group)
    if not isinstance(frame, pl.DataFrame) or len(frame) != expected:
        raise StateError(
            f"{'.'.join(table.name())}: files that should hold {expected} rows hold others; nothing was changed"
        )
    order = [name for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP, PARTITION, OFFSET) if name in frame.columns]
    arrow = (frame.sort(order) if order else frame).to_arrow(compat_level=pl.CompatLevel.oldest())
    # pyiceberg holds the target size against rows in memory, which are several times larger than the file.
    whole = {**table.metadata.properties, "write.target-file-size-bytes": str(2**62)}
    metadata = table.metadata.model_copy(update={"properties": whole})
    (file,) = _dataframe_to_data_files(metadata, arrow, table.io)
    return file


def _replace(lake: Lake, table: str, old: list[DataFile], new: list[DataFile]) -> None:
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    from features.transaction import replace_files

    for _ in range(COMMIT_TRIES):
        # Read anew each time: an ingest that came first moved the positions, which this commit repeats.
        target = lake.existing(table)
        with suppress(CommitFailedException):
            try:
                replace_files(target, old, new, told(target))
            except ValidationException as error:
                raise ConflictError(
                    f"another program rewrote files of {lake.namespace}.{table} first; all rows are there, run it again"
                ) from error
            return
    raise ConflictError(
        f"other writers committed to {lake.namespace}.{table} first {COMMIT_TRIES} times; all rows are there, run it again"
    )
