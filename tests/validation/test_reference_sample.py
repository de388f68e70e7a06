from __future__ import annotations

import polars as pl
import pytest

from perennial.errors import StateError
from validation.reference_sample import MAX_CELLS, MAX_ROWS, read_reference_sample, write_reference_sample


@pytest.mark.parametrize(("columns", "kept"), [(2, MAX_ROWS), (1_000, MAX_CELLS // 1_000)])
def test_a_sample_is_bounded_in_rows_and_in_cells(columns: int, kept: int) -> None:
    names = [f"c{i}" for i in range(columns)]
    frame = pl.DataFrame({"label": pl.zeros(60_000, eager=True)}).with_columns(
        pl.int_range(60_000, dtype=pl.Int64).alias(c) for c in names
    )
    found = read_reference_sample(write_reference_sample(frame, names, seed=1))
    assert found.columns == names
    assert found["c0"].n_unique() == found.height == kept


def test_the_same_rows_give_the_same_bytes_and_another_seed_another_sample() -> None:
    frame = pl.DataFrame({"x": range(60_000), "y": [None, "a"] * 30_000})
    first, again, other = (write_reference_sample(frame, ["x", "y"], seed) for seed in (1, 1, 2))
    assert first == again != other
    few = read_reference_sample(write_reference_sample(frame.head(3), ["x", "y"], 1))
    assert sorted(few.rows()) == frame.head(3).rows()


def test_a_damaged_sample_is_told() -> None:
    with pytest.raises(StateError, match=r"reference_sample\.parquet cannot be read"):
        read_reference_sample(b"PAR1 and no more")
