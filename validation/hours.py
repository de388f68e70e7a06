"""Profiles of single hours, side by side: any stretch of time is a sum of them, and so is any block of a test."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from perennial.errors import StateError, UsageError
from validation.bins import Counts

HOUR_S = 3600
DAY_H = 24
WEEK_H = 7 * DAY_H


@dataclass(frozen=True, eq=False)
class HourlyProfiles:
    """How many rows of each hour fell into each bin of a reference.

    Attributes:
        reference: fingerprint of the reference whose bins these are.
        hours: hours since 1970 (UTC), ascending, each once; shape (hours,).
        counts: rows in each bin, the features' bins one after the other; shape (hours, bins).
    """

    reference: str
    hours: NDArray[np.int64]
    counts: Counts

    def between(self, since: int, until: int) -> Counts:
        """Counts of the hours [since, until) together, shape (bins,)."""
        first, last = np.searchsorted(self.hours, [since, until])
        return np.asarray(self.counts[first:last].sum(axis=0, dtype=np.int64))

    def blocks(self, starts: Sequence[int], length: int) -> Counts:
        """Counts of stretches of `length` hours that begin at `starts`, shape (starts, bins)."""
        if not len(starts):
            return np.zeros((0, self.counts.shape[1]), dtype=np.int64)
        return np.stack([self.between(start, start + length) for start in starts])

    def to_parquet(self) -> bytes:
        """As a file: `hour` and `counts` by row, and in its metadata the check sum of both."""
        file, counts = io.BytesIO(), self.counts.astype(np.int32)
        frame = pl.DataFrame({"hour": self.hours, "counts": pl.Series(counts, dtype=COUNTS)})
        frame.write_parquet(file, compression="zstd", metadata={CHECK: _check_sum(self.hours, counts)})
        return file.getvalue()

    @staticmethod
    def from_parquet(file: bytes, reference: str) -> HourlyProfiles:
        """What `to_parquet` wrote; StateError when it cannot be read, or is not what was written."""
        try:
            frame = pl.read_parquet(io.BytesIO(file))
            hours, counts = frame.get_column("hour").to_numpy(), matrix(frame.get_column("counts"))
            if pl.read_parquet_metadata(io.BytesIO(file)).get(CHECK) != _check_sum(hours, counts):
                raise ValueError("its check sum differs")
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, OSError) as error:
            raise StateError(
                f"cannot read the hours of a reference profile ({error!r}); retrain, or release a model that has them."
            ) from error
        return HourlyProfiles(reference, hours, counts)


CHECK = "perennial.crc32"

COUNTS = pl.List(pl.Int32)
"""Type of a column of counts. Two thousand million rows in one hour and bin are not foreseen."""


def _check_sum(hours: NDArray[np.int64], counts: NDArray[Any]) -> str:
    return f"{zlib.crc32(counts.tobytes(), zlib.crc32(hours.tobytes())):08x}"


def matrix(counts: pl.Series) -> Counts:
    """Lists of one length as an array, shape (rows, length); ValueError when their lengths differ."""
    if not len(counts):
        return np.zeros((0, 0), dtype=np.int32)
    width = int(counts.list.len().max() or 0)  # type: ignore[arg-type]
    if counts.list.len().min() != width:
        raise ValueError("profiles of different lengths")
    return np.asarray(counts.explode().to_numpy().reshape(len(counts), width))


def hour_of(at: datetime) -> int:
    """The hour a moment lies in, in hours since 1970."""
    return int(at.timestamp() // HOUR_S)


def moment_of(hour: int) -> datetime:
    """When an hour begins (UTC)."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC)


def hours_of(frame: pl.DataFrame, timestamp_column: str) -> NDArray[np.int64]:
    """The hour of each row, in hours since 1970.

    Raises:
        UsageError: the column is not there, is not a timestamp with a time zone, or holds nulls.
    """
    dtype = frame.schema.get(timestamp_column)
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        raise UsageError(
            f"column {timestamp_column!r} is {dtype}, expected a UTC timestamp (Datetime with time_zone='UTC')."
        )
    stamps = frame.get_column(timestamp_column).dt.convert_time_zone("UTC")
    if stamps.null_count():
        raise UsageError(
            f"{stamps.null_count()} of {frame.height} rows have no {timestamp_column!r}; quarantine them first."
        )
    return np.asarray(stamps.dt.epoch("s").to_numpy() // HOUR_S)
