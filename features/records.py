"""Kafka records as they were read: columns, and nothing is looked into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Records:
    """Kafka records of one topic, a column each, in the order in which they were read.

    Attributes:
        partitions: of each record; 32-bit integers.
        offsets: of each record; 64-bit integers.
        keys: of each record, or null; bytes.
        values: of each record, or null (a tombstone); bytes.
    """

    partitions: pa.Array[Any]
    offsets: pa.Array[Any]
    keys: pa.Array[Any]
    values: pa.Array[Any]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of_columns(
        cls,
        partitions: Sequence[int],
        offsets: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> Records:
        """Records from columns of equal length."""
        import pyarrow as pa

        return cls(
            pa.array(partitions, pa.int32()),
            pa.array(offsets, pa.int64()),
            pa.array(keys, pa.binary()),
            pa.array(values, pa.binary()),
        )

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, bytes | None, bytes | None]]) -> Records:
        """Records from (partition, offset, key, value) each."""
        columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return cls.of_columns(*columns)

    def rows(self) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
        """Each record as (partition, offset, key, value)."""
        columns = (self.partitions, self.offsets, self.keys, self.values)
        return zip(*(column.to_pylist() for column in columns), strict=True)
