"""The lake's upkeep: its history, few large files instead of many small ones, and the files that nobody needs any more.

Each table's work is done in commits that are whole or not at all, and files are deleted only after the commit that made
them unneeded: killed at any line, it leaves a table that reads the same, and is run again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, OFFSET, OFFSETS, PARTITION, Lake
from features.snapshots import to_let_go, told, words
from perennial.errors import ConflictError, StateError, UsageError

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table

TARGET_BYTES, TARGET_ROWS = 128 * 2**20, 2_000_000  # of a file; rows, because they are in memory while it is written
FULL = 0.75  # of either: a file that is left alone
FEWEST_FILES = 4  # in a day partition, before they are worth a rewrite
COMMIT_BYTES = 2**30
COMMIT_TRIES = 10
DELETES_AT_ONCE = 8
# Only what Iceberg writes is ever deleted; what somebody else put there is theirs.
ICEBERG_FILES = (".parquet", ".avro", ".metadata.json", ".puffin")


@dataclass(frozen=True)
class SnapshotLine:
    """One snapshot of a table.

    Attributes:
        snapshot_id: its id.
        committed: when, UTC.
        operation: append, replace (a compaction), overwrite or delete.
        added_rows: rows of the files it added; those of a replace were there before.
        total_rows: rows of the table as of it.
        files: data files of the table as of it.
        size_bytes: of these files.
        offsets: next Kafka position by partition; empty if it tells none.
        names: under which it is pinned.
    """

    snapshot_id: int
    committed: datetime
    operation: str
    added_rows: int
    total_rows: int
    files: int
    size_bytes: int
    offsets: Mapping[int, int]
    names: tuple[str, ...]


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


@dataclass(frozen=True)
class Expiry:
    """What was let go of.

    Attributes:
        table: its name.
        snapshots_gone: snapshots that were let go.
        snapshots_kept: snapshots that can still be read.
        files_deleted: files that no snapshot needs, deleted.
        deleted_bytes: their size.
    """

    table: str
    snapshots_gone: int
    snapshots_kept: int
    files_deleted: int
    deleted_bytes: int


def tables_of(lake: Lake, table: str | None) -> list[str]:
    """The table of that name, or all of them.

    Raises:
        UsageError: there is no table of that name.
        StateError: there are no tables at all.
    """
    known = lake.tables()
    if not known:
        raise StateError(
            f"the lake has no tables of {lake.namespace} yet; run `perennial ingest {lake.namespace}` first"
        )
    if table is not None and table not in known:
        raise UsageError(f"the lake has no table {lake.namespace}.{table}; it has {', '.join(known)}")
    return known if table is None else [table]


def history(lake: Lake, table: str) -> tuple[SnapshotLine, ...]:
    """The snapshots of a table that can still be read, newest first.

    Raises:
        StateError: there is no such table.
    """
    metadata = lake.existing(table).metadata
    lines = []
    for snapshot in sorted(metadata.snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms), reverse=True):
        said = words(snapshot)
        lines.append(
            SnapshotLine(
                snapshot.snapshot_id,
                datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC),
                snapshot.summary.operation.value if snapshot.summary else "",
                int(said.get("added-records", 0)),
                int(said.get("total-records", 0)),
                int(said.get("total-data-files", 0)),
                int(said.get("total-files-size", 0)),
                {int(partition): int(offset) for partition, offset in json.loads(said.get(OFFSETS, "{}")).items()},
                tuple(n for n, ref in metadata.refs.items() if n != "main" and ref.snapshot_id == snapshot.snapshot_id),
            )
        )
    return tuple(lines)


def compact(lake: Lake, table: str) -> Compaction:
    """Write the small files of each day into few large ones, with the same rows, sorted by event time.

    By event time, because the reader that looks into a day looks for hours: features look back, scoring asks for what is
    new. Places in Kafka rise with event time, so a range of them is mostly a run of rows as well; sorted by place, a day's
    hours would be spread over all row groups. What reads the newest places reads files that are not compacted yet.

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


def _first_value(table: Table) -> Any:
    """A function from a file to its earliest event time, from the statistics of its columns."""
    from pyiceberg.conversions import from_bytes
    from pyiceberg.types import PrimitiveType

    field = next((f for f in table.schema().fields if f.name == EVENT_TIMESTAMP), None)

    def first(file: DataFile) -> int:
        bound = (file.lower_bounds or {}).get(field.field_id) if field else None
        known = field is not None and bound is not None and isinstance(field.field_type, PrimitiveType)
        return int(from_bytes(field.field_type, bound)) if known and field and bound else 0

    return first


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


def expire(lake: Lake, table: str, keep: int, older_than: timedelta, now: datetime) -> Expiry:
    """Let go of old snapshots without a name, then delete the files of the table that no snapshot needs.

    Args:
        lake: the pipeline's lake.
        table: name of the table.
        keep: how many of the newest snapshots stay, at least 1; named ones stay anyway.
        older_than: how old a file must be: younger ones may be a writer's who has not committed yet.
        now: the clock, UTC.

    Raises:
        ConflictError: other writers kept committing first.
        StateError: there is no such table, or a file is missing that a snapshot needs; nothing was deleted.
        UnreachableError: the catalog or S3 does not answer.
    """
    with lake.answering():
        gone = _let_go(lake, table, keep)
        # Listed before the table is read: whatever is committed from here on is either needed or not in the list.
        listed = _listed(lake.existing(table))
        target = lake.existing(table)
        needed, beside = _needed(target)
        _check_all_there(target, needed, listed, now - older_than)
        old = {
            path: size
            for path, (size, modified) in listed.items()
            if path not in needed | beside and modified < now - older_than and path.endswith(ICEBERG_FILES)
        }
        _delete(target, sorted(old))
    return Expiry(table, gone, len(target.metadata.snapshots), len(old), sum(old.values()))


def _let_go(lake: Lake, table: str, keep: int) -> int:
    from pyiceberg.exceptions import CommitFailedException

    from features.transaction import let_go

    for _ in range(COMMIT_TRIES):
        target = lake.existing(table)
        old = to_let_go(target, max(keep, 1))
        with suppress(CommitFailedException):
            let_go(target, old)
            return len(old)
    raise ConflictError(f"other writers committed to {lake.namespace}.{table} first {COMMIT_TRIES} times; run it again")


def _needed(table: Table) -> tuple[set[str], set[str]]:
    """Paths of the files that the snapshots are made of, and of those that tell about the table."""
    snapshots, manifests = set(), set()
    for snapshot in table.metadata.snapshots:
        snapshots.add(_path(table, snapshot.manifest_list))
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in manifests:
                manifests.add(manifest.manifest_path)
                live = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                snapshots |= {_path(table, entry.data_file.file_path) for entry in live}
    metadata = table.metadata
    told_by = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    told_by |= {file.statistics_path for file in (*metadata.statistics, *metadata.partition_statistics)}
    return snapshots | {_path(table, path) for path in manifests}, {_path(table, path) for path in told_by}


def _check_all_there(
    table: Table, needed: set[str], listed: Mapping[str, tuple[int, datetime]], before: datetime
) -> None:
    """Refuse to delete from a table whose files are not found under the names that it knows them by."""
    from pyarrow.fs import FileType

    root = _path(table, table.location())
    unlisted = sorted(path for path in needed - listed.keys() if path.startswith(f"{root}/"))
    for info in _files(table).get_file_info(unlisted) if unlisted else []:
        # One that is there and young was committed after the files were listed.
        if info.type == FileType.NotFound or info.mtime < before:
            raise StateError(
                f"{'.'.join(table.name())} needs {info.path}, which is not among its files; nothing was deleted. "
                "Find out what took it away; the snapshots that do not need it can still be read"
            )


def _listed(table: Table) -> dict[str, tuple[int, datetime]]:
    """Size and time of every file below the table's location, by path."""
    from pyarrow.fs import FileSelector, FileType

    found = _files(table).get_file_info(FileSelector(_path(table, table.location()), recursive=True))
    return {info.path: (info.size, info.mtime) for info in found if info.type == FileType.File}


def _delete(table: Table, paths: list[str]) -> None:
    files = _files(table)

    def delete(path: str) -> None:
        with suppress(FileNotFoundError):  # another one is at it
            files.delete_file(path)

    with ThreadPoolExecutor(DELETES_AT_ONCE) as threads:
        list(threads.map(delete, paths))


def _files(table: Table) -> Any:
    """Arrow's file system of the table's files."""
    from pyiceberg.io.pyarrow import PyArrowFileIO

    io = table.io
    if not isinstance(io, PyArrowFileIO):
        raise TypeError(f"the lake reads its files by Arrow, not by {type(io).__name__}")
    scheme, netloc, _ = io.parse_location(table.location(), io.properties)
    return io.fs_by_scheme(scheme, netloc)


def _path(table: Table, location: str) -> str:
    """A file's path as its file system lists it."""
    from pyiceberg.io.pyarrow import PyArrowFileIO

    return PyArrowFileIO.parse_location(location, table.io.properties)[2].rstrip("/")
