"""A pyiceberg transaction that works out its table's metadata once a change, not each time it is looked at.

pyiceberg (0.12) copies all metadata whenever a transaction's `table_metadata` is read, which one append does about twenty
times: a third of a small commit. Metadata is only ever replaced, never altered, so one copy serves every reader.
"""

from __future__ import annotations

from pyiceberg.table import Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableUpdate, update_table_metadata


class OneCopyTransaction(Transaction):
    """A transaction whose staged metadata is kept until something else is staged or the table moves on."""

    _staged: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        """The table's metadata with the staged updates applied."""
        base, updates = self._table.metadata, self._updates
        if self._staged is None or self._staged[0] is not base or self._staged[1] is not updates:
            self._staged = (base, updates, update_table_metadata(base, updates))
        return self._staged[2]
