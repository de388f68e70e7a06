"""The lake's upkeep: its history, and letting go of snapshots and files that nobody needs any more.

Files are deleted only after the commit that made them unneeded: killed at any line, it leaves a table that reads the same,
and is run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from features.lake import OFFSETS, Lake
from features.snapshots import to_let_go, words
from perennial.errors import ConflictError, StateError, UsageError

if TYPE_CHECKING:
    from pyiceberg.table import Table

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
