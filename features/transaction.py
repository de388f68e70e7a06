"""Commits to Iceberg tables where pyiceberg's (0.12) own do not do: a cheaper one, a rewrite, and a letting go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update import (
    RemoveSnapshotsUpdate,
    TableUpdate,
    update_table_metadata,
)
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles
from pyiceberg.typedef import EMPTY_DICT

from features.data_files import day_field, write_days


class OneCopyTransaction(Transaction):
    """A transaction that works out its table's metadata once a change, not each time it is looked at.

    pyiceberg copies all metadata whenever a transaction's `table_metadata` is read, which one append does about twenty
    times: a third of a small commit. Metadata is only ever replaced, never altered, so one copy serves every reader, until
    something else is staged or the table moves on.
    """

    _staged: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        """The table's metadata with the staged updates applied."""
        base, updates = self._table.metadata, self._updates
        if self._staged is None or self._staged[0] is not base or self._staged[1] is not updates:
            self._staged = (base, updates, update_table_metadata(base, updates))
        return self._staged[2]

    def append_frame(self, frame: pl.DataFrame, properties: dict[str, str]) -> None:
        """Append rows.

        Args:
            frame: with columns of the table.
            properties: of the snapshot.
        """
        if day_field(self.table_metadata) is None:
            self.append(frame.to_arrow(compat_level=pl.CompatLevel.oldest()), properties)
            return
        with self._append_snapshot_producer(properties) as snapshot:
            for file in write_days(frame, self.table_metadata, self._table.io, snapshot.commit_uuid):
                snapshot.append_data_file(file)


def replace_files(table: Table, old: list[DataFile], new: list[DataFile], properties: dict[str, str]) -> None:
    """Let files with the same rows take the place of others, in one commit.

    Args:
        table: as it is now.
        old: files of its current snapshot.
        new: files that hold their rows and are written already.
        properties: what the snapshot says about itself.

    Raises:
        CommitFailedException: another writer committed since the table was read; nothing was replaced.
        ValidationException: one of the old files is no longer in the table; nothing was replaced.
    """
    with OneCopyTransaction(table) as transaction:
        rewrite = _Rewrite(Operation.OVERWRITE, transaction, table.io, snapshot_properties=properties)
        for file in old:
            rewrite.delete_data_file(file)
        for file in new:
            rewrite.append_data_file(file)
        rewrite.commit()


class _Rewrite(_OverwriteFiles):
    """An overwrite that says that it changed no rows, so that readers of what was appended pass it over."""

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        worked_out = super()._summary(snapshot_properties)  # pyiceberg works out totals for its own operations only
        return Summary(operation=Operation.REPLACE, **worked_out.additional_properties)

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        data = [manifest for manifest in manifests if manifest.content == ManifestContent.DATA]
        others = [manifest for manifest in manifests if manifest.content != ManifestContent.DATA]
        size = TableProperties.MANIFEST_TARGET_SIZE_BYTES_DEFAULT
        merge = _ManifestMergeManager(size, min_count_to_merge=2, merge_enabled=True, snapshot_producer=self)
        return merge.merge_manifests(data) + others


def replace_all(table: Table, new: Sequence[DataFile], properties: dict[str, str]) -> None:
    """Let files take the place of all rows of a table, in one commit.

    Args:
        table: as it is now.
        new: files that are written already.
        properties: what the snapshot says about itself.

    Raises:
        CommitFailedException: another writer committed since the table was read; nothing was replaced.
    """
    with OneCopyTransaction(table) as transaction:
        replacement = _Replacement(Operation.OVERWRITE, transaction, table.io, snapshot_properties=properties)
        for file in new:
            replacement.append_data_file(file)
        replacement.commit()


class _Replacement(_OverwriteFiles):
    """An overwrite of every file. pyiceberg's own looks each of them up by a filter with a term for each day."""

    def _existing_manifests(self) -> list[ManifestFile]:
        return []

    def _deleted_entries(self) -> list[ManifestEntry]:
        snapshot = self._transaction.table_metadata.current_snapshot()
        manifests = snapshot.manifests(self._io) if snapshot else []
        gone = [
            ManifestEntry.from_args(
                status=ManifestEntryStatus.DELETED,
                snapshot_id=self._snapshot_id,
                sequence_number=entry.sequence_number,
                file_sequence_number=entry.file_sequence_number,
                data_file=entry.data_file,
            )
            for manifest in manifests
            if manifest.content == ManifestContent.DATA
            for entry in manifest.fetch_manifest_entry(self._io, discard_deleted=True)
        ]
        self._deleted_data_files = {entry.data_file for entry in gone}  # the summary takes them off its totals
        return gone


@dataclass(frozen=True)
class _StillUnnamed:
    """A requirement of a commit: the snapshots are there and have no name. pyiceberg would drop a name given meanwhile."""

    snapshot_ids: frozenset[int]

    def validate(self, metadata: TableMetadata | None) -> None:
        if metadata is None:
            raise CommitFailedException("the table is gone")
        if self.snapshot_ids & {ref.snapshot_id for ref in metadata.refs.values()}:
            raise CommitFailedException("one of the snapshots has a name")
        if not self.snapshot_ids <= {snapshot.snapshot_id for snapshot in metadata.snapshots}:
            raise CommitFailedException("one of the snapshots is gone already")


def let_go(table: Table, snapshot_ids: list[int]) -> None:
    """Take snapshots out of the table's history, in one commit; their files stay.

    Raises:
        CommitFailedException: one of them was named or let go of since the table was read; nothing was done.
    """
    if snapshot_ids:
        removal = RemoveSnapshotsUpdate(snapshot_ids=snapshot_ids)
        requirement: Any = _StillUnnamed(frozenset(snapshot_ids))  # pyiceberg's type lists those of its REST protocol
        OneCopyTransaction(table, autocommit=True)._apply((removal,), (requirement,))
