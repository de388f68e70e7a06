from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pyiceberg.table import Table, Transaction

from features.data_files import day_field, write_days
from features.lake import Lake
from perennial.settings import Settings

T0 = datetime(1969, 12, 30, 22, tzinfo=UTC)  # days before 1970 are negative numbers


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "toys")


def rows(*hours: float) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_timestamp": [T0 + timedelta(hours=h) for h in hours],
            "name": [None if i == 2 else f"näme {i}" for i in range(len(hours))],
            "price": [float("inf") if i == 1 else i / 3 for i in range(len(hours))],
            "gift": [i % 2 == 0 for i in range(len(hours))],
            "raw": [b"\0\xff" * i for i in range(len(hours))],
            "kafka_offset": range(len(hours)),
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def told(table: Table) -> list[dict[str, Any]]:
    """What Iceberg's manifests say of each file, but its name and size."""
    found = []
    for task in table.scan().plan_files():
        file = task.file
        found.append(
            {
                "partition": file.partition[0],
                "rows": file.record_count,
                "nulls": dict(file.null_value_counts or {}),
                "values": dict(file.value_counts or {}),
                "lower": dict(file.lower_bounds or {}),
                "upper": dict(file.upper_bounds or {}),
            }
        )
    return sorted(found, key=lambda one: (one["partition"] is None, one["partition"] or 0))


def test_files_are_what_pyiceberg_itself_would_write(lake: Lake) -> None:
    frame = rows(50, 0, 1.99, 2, 26, 25.5, 49, 100)
    lake.append("ours", frame)
    lake.append("theirs", frame.clear())
    theirs = lake.existing("theirs")
    with Transaction(theirs, autocommit=True) as transaction:
        transaction.append(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    ours = told(lake.existing("ours"))
    assert [(one["partition"], one["rows"]) for one in ours] == [(-2, 2), (-1, 2), (0, 2), (1, 1), (3, 1)]
    assert ours == told(lake.existing("theirs"))
    for filtered in ("kafka_offset >= 4", "price > 1.0", "name = 'näme 5'", "gift = true", "name is null"):
        one, other = (lake.existing(t).scan(filtered).to_arrow() for t in ("ours", "theirs"))
        assert_frame_equal(pl.DataFrame(one), pl.DataFrame(other), check_row_order=False)


def test_rows_come_back_as_they_were_whatever_columns_they_lack(lake: Lake) -> None:
    first = rows(0, 30, 1)
    lake.append("sold", first)
    later = rows(31, 2).drop("gift").with_columns(colour=pl.lit("red"))
    lake.append("sold", later.select("colour", "raw", "event_timestamp", "price", "kafka_offset", "name"))
    expected = pl.concat([first, later], how="diagonal").sort("event_timestamp")
    found = lake.read("sold").sort("event_timestamp")
    assert_frame_equal(found.select(expected.columns), expected)
    assert lake.read("sold", since=T0 + timedelta(hours=30)).height == 2


def test_rows_without_a_time_have_a_partition_of_their_own(lake: Lake) -> None:
    frame = rows(0, 30).with_columns(
        event_timestamp=pl.when(pl.col("kafka_offset") == 0).then("event_timestamp").otherwise(None)
    )
    lake.append("sold", frame)
    assert [one["partition"] for one in told(lake.existing("sold"))] == [-2, None]
    assert lake.read("sold").sort("kafka_offset")["event_timestamp"].to_list() == [T0, None]


def test_no_rows_are_no_files_and_a_table_without_days_is_refused(lake: Lake) -> None:
    lake.append("sold", rows().cast({"name": pl.String, "price": pl.Float64, "gift": pl.Boolean, "raw": pl.Binary}))
    table = lake.existing("sold")
    assert list(table.scan().plan_files()) == []
    lake.append("plain", rows(0, 30), partition_by=None)
    plain = lake.existing("plain")
    assert day_field(plain.metadata) is None
    assert plain.inspect.files().num_rows == 1
    with pytest.raises(ValueError, match="not partitioned by day"):
        write_days(rows(0), plain.metadata, plain.io, uuid.uuid4())
