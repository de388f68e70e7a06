"""Which Iceberg snapshots stay: the newest few, and those with a name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from perennial.errors import ConflictError, StateError

if TYPE_CHECKING:
    from pyiceberg.table import Table

# Every commit copies and rewrites all the metadata, so a table whose snapshots are never let go gets slower with each.
MOST_SNAPSHOTS, KEPT_SNAPSHOTS = 10, 4
PIN_TRIES = 5


def pin(load: Callable[[], Table], snapshot_id: int, name: str) -> None:
    """Give a snapshot a name, which keeps it for good; it may have the name already.

    Args:
        load: reads the table anew, for when another writer commits in between.
        snapshot_id: the snapshot.
        name: of the Iceberg tag.

    Raises:
        ConflictError: other writers kept committing first.
        StateError: there is no such snapshot.
    """
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(PIN_TRIES):
        table = load()
        if name in table.metadata.refs:
            return
        if table.snapshot_by_id(snapshot_id) is None:
            raise StateError(
                f"{'.'.join(table.name())} no longer has snapshot {snapshot_id}; read the table as it is now"
            )
        try:
            table.manage_snapshots().create_tag(snapshot_id, name).commit()
        except CommitFailedException:
            continue
        return
    raise ConflictError(f"{'.'.join(table.name())}: other writers committed first {PIN_TRIES} times; run it again")


def let_go_of_old_snapshots(table: Table) -> None:
    """Keep the newest snapshots and the named ones, once there are too many; the rows of a table are not touched."""
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    from features.transaction import OneCopyTransaction

    snapshots = table.metadata.snapshots
    if len(snapshots) <= MOST_SNAPSHOTS:
        return
    named = {ref.snapshot_id for ref in table.metadata.refs.values()}
    oldest_first = sorted(snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms))
    old = [s.snapshot_id for s in oldest_first[:-KEPT_SNAPSHOTS] if s.snapshot_id not in named]
    # Another writer is at work: it, or the next commit, will do it.
    with suppress(CommitFailedException):
        ExpireSnapshots(OneCopyTransaction(table, autocommit=True)).by_ids(old).commit()
