"""Which Iceberg snapshots stay: the newest few, and those with a name. And what they tell about the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from perennial.errors import ConflictError, StateError

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

# Every commit copies and rewrites all the metadata, so a table whose snapshots are never let go gets slower with each.
MOST_SNAPSHOTS, KEPT_SNAPSHOTS = 10, 4
PIN_TRIES = 5
OURS = "perennial."


def ancestors(table: Table) -> Iterator[Snapshot]:
    """The current snapshot and those it came from, newest first, as far as they are kept."""
    snapshot = table.current_snapshot()
    while snapshot is not None:
        yield snapshot
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None


def words(snapshot: Snapshot) -> dict[str, str]:
    """What a snapshot says of itself."""
    return snapshot.summary.additional_properties if snapshot.summary else {}


def told(table: Table) -> dict[str, str]:
    """What the table's snapshots say in perennial's own words: of each property, what the newest that tells it says.

    Other Iceberg clients commit, too, and know nothing of these.
    """
    found: dict[str, str] = {}
    for snapshot in ancestors(table):
        for name, value in words(snapshot).items():
            if name.startswith(OURS):
                found.setdefault(name, value)
    return found


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
        # ValueError: the snapshot was let go since the table was read, which the next look will tell.
        with suppress(CommitFailedException, ValueError):
            table.manage_snapshots().create_tag(snapshot_id, name).commit()
            return
    raise ConflictError(f"{'.'.join(table.name())}: other writers committed first {PIN_TRIES} times; run it again")


def to_let_go(table: Table, keep: int) -> list[int]:
    """Ids of the snapshots that nobody needs: unnamed, not among the newest, and none after the last that tells positions.

    Args:
        keep: how many of the newest stay.
    """
    stay = {ref.snapshot_id for ref in table.metadata.refs.values()}
    # pyiceberg forgets the parent of a snapshot whose parent goes: what another program committed since must stay, too.
    line = list(ancestors(table))
    teller = next((n for n, snapshot in enumerate(line) if any(w.startswith(OURS) for w in words(snapshot))), -1)
    stay |= {snapshot.snapshot_id for snapshot in line[: teller + 1]}
    newest_first = sorted(
        table.metadata.snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms), reverse=True
    )
    return [snapshot.snapshot_id for snapshot in newest_first[keep:] if snapshot.snapshot_id not in stay]


def let_go_of_old_snapshots(table: Table) -> None:
    """Keep the newest snapshots and the named ones, once there are too many; the rows of a table are not touched."""
    from pyiceberg.exceptions import CommitFailedException

    from features.transaction import let_go

    if len(table.metadata.snapshots) <= MOST_SNAPSHOTS:
        return
    # Another writer is at work: it, or the next commit, will do it.
    with suppress(CommitFailedException):
        let_go(table, to_let_go(table, KEPT_SNAPSHOTS))
