"""Other rows for a whole lake table: written file by file, and put in place by one commit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import polars as pl

from features.lake import EVENT_TIMESTAMP, OFFSETS, Lake, LakeCommit, check_fits, check_still, positions_of
from features.snapshots import told
from perennial.errors import BlockedError, ConflictError, StateError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

LOOKS_AT_ONCE = 8
COLUMN_TRIES = 10
# A file of rows as Iceberg describes it.
RowFile: TypeAlias = "DataFile"


def write_files(lake: Lake, table: str, frame: pl.DataFrame) -> list[RowFile]:
    """Write rows to files that nobody reads until `replace_rows`; `perennial lake expire` deletes those that never are.

    Args:
        lake: the pipeline's lake.
        table: table name; made from the frame's schema if it does not exist, partitioned by the day of `event_timestamp`.
        frame: rows. Columns the table lacks are added to it as optional columns.

    Raises:
        ConflictError: others kept committing to the table while columns were added to it.
        StateError: the rows do not fit the table.
        BlockedError: the disk is full, or somebody locks the catalog.
        UnreachableError: the catalog or S3 does not answer.
    """
    from features.data_files import day_field, write_days

    schema = frame.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    try:
        with lake.answering():
            target = _made(lake, table, schema)
            check_fits(target, schema)
            if day_field(target.metadata) is None:
                raise StateError(
                    f"{lake.namespace}.{table} is not partitioned by the day of its event time, as perennial makes it; "
                    "partition it so, or start with a new PERENNIAL_HOME"
                )
            # Named by a number of their own: names begin anew with every frame.
            return write_days(frame, target.metadata, target.io, uuid.uuid4())
    except OSError as error:
        raise BlockedError(
            f"the lake at {lake.warehouse} did not take {frame.height} rows: {error}; mend it, run again"
        ) from error


def _made(lake: Lake, table: str, schema: pa.Schema) -> Table:
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(COLUMN_TRIES):
        with suppress(CommitFailedException):  # a follower, which commits often
            return lake._table(table, schema, EVENT_TIMESTAMP)
    raise ConflictError(
        f"other writers committed to {lake.namespace}.{table} first {COLUMN_TRIES} times; nothing was replaced, run it again"
    )


def missing(lake: Lake, table: str, files: Sequence[RowFile]) -> list[str]:
    """Those of the files that are no longer there."""
    with lake.answering(), ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
        io, paths = lake.existing(table).io, [file.file_path for file in files]
        there = threads.map(lambda path: io.new_input(path).exists(), paths)
        return [path for path, found in zip(paths, there, strict=True) if not found]


def replace_rows(
    lake: Lake,
    table: str,
    files: Sequence[RowFile],
    offsets: Mapping[int, int],
    properties: Mapping[str, str],
    still: Mapping[str, str | None],
) -> LakeCommit:
    """Let files take the place of all rows of a table, in one commit. Snapshots before it read as they did.

    Args:
        lake: the pipeline's lake.
        table: name of a table.
        files: what `write_files` wrote.
        offsets: next Kafka position by partition; the files hold all that is before.
        properties: what else the snapshot says about itself, as in `Lake.append`.
        still: properties that the table must still tell, as in `Lake.append`.

    Raises:
        ConflictError: another writer committed first, or the table has gone beyond the positions; nothing was replaced.
        BlockedError: the disk is full, or somebody locks the catalog.
        UnreachableError: the catalog or S3 does not answer.
    """
    from pyiceberg.exceptions import CommitFailedException

    from features.transaction import replace_all

    try:
        with lake.answering():
            target = lake.existing(table)
            known = positions_of(target)
            if any(at > offsets.get(partition, 0) for partition, at in known.items()):
                raise ConflictError(
                    f"another writer moved {lake.namespace}.{table} to {known}, beyond {dict(offsets)}; "
                    "nothing was replaced, run it again"
                )
            check_still(target, still)
            replace_all(target, files, {**told(target), OFFSETS: json.dumps(dict(offsets)), **properties})
    except CommitFailedException as error:
        raise ConflictError(
            f"another writer committed to {lake.namespace}.{table} first; nothing was replaced, run it again"
        ) from error
    except OSError as error:
        raise BlockedError(
            f"the lake at {lake.warehouse} did not take a commit: {error}; mend it, run again"
        ) from error
    snapshot = target.current_snapshot()
    if snapshot is None:
        raise StateError(f"{lake.namespace}.{table} has no snapshot after a commit; the catalog is damaged")
    lake.tidy(target)
    return LakeCommit(table, snapshot.snapshot_id, sum(file.record_count for file in files), dict(offsets))
