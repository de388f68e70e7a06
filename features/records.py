"""Kafka records as they were read: columns, and nothing is looked into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Records:
    """Kafka records of one topic, a column each, in the order in which they were read.

    Attributes:
        partitions: of each record.
        offsets: of each record.
        keys: of each record, or None.
        values: of each record, or None (a tombstone).
    """

    partitions: Sequence[int]
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, bytes | None, bytes | None]]) -> Records:
        """Records from (partition, offset, key, value) each."""
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return cls(*columns)

    def rows(self) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
        """Each record as (partition, offset, key, value)."""
        return zip(self.partitions, self.offsets, self.keys, self.values, strict=True)
