"""Some rows of the reference, kept with the champion to be drawn beside today's."""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl

from perennial.errors import StateError

REFERENCE_SAMPLE_FILE = "reference_sample.parquet"
MAX_ROWS = 50_000
MAX_CELLS = 2_000_000
"""Rows times columns: 16 MB of numbers before compression, so that a thousand columns make no bundle large."""


def write_reference_sample(rows: pl.DataFrame, columns: Sequence[str], seed: int) -> bytes:
    """A random sample of the reference as Parquet; the same rows, columns and seed give the same bytes.

    Args:
        rows: what the champion is held to.
        columns: those to keep, such as features and score.
        seed: of the draw.
    """
    most = min(MAX_ROWS, MAX_CELLS // max(len(columns), 1), rows.height)
    written = io.BytesIO()
    rows.select(columns).sample(most, seed=seed).write_parquet(written, compression="zstd")
    return written.getvalue()


def read_reference_sample(content: bytes) -> pl.DataFrame:
    """The rows that `write_reference_sample` wrote; StateError when they cannot be read."""
    try:
        return pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StateError(f"{REFERENCE_SAMPLE_FILE} cannot be read ({error}); retrain to write it anew") from error
