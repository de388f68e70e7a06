from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.lake import Lake
from features.snapshots import MOST_SNAPSHOTS
from perennial.errors import StateError
from perennial.settings import Settings

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def append(lake: Lake, number: int) -> int:
    row = pl.DataFrame({"event_timestamp": [BEGIN + timedelta(hours=number)], "number": [number]})
    row = row.with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    return lake.append("t", row, {0: number + 1}).snapshot_id


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


def test_many_commits_leave_few_snapshots_and_every_row(lake: Lake) -> None:
    for number in range(MOST_SNAPSHOTS + 5):
        append(lake, number)
    assert len(lake.existing("t").metadata.snapshots) <= MOST_SNAPSHOTS
    assert sorted(lake.read("t")["number"]) == list(range(MOST_SNAPSHOTS + 5))
    assert lake.offsets("t") == {0: MOST_SNAPSHOTS + 5}


def test_a_pinned_snapshot_is_read_as_it_was_however_many_commits_follow(lake: Lake) -> None:
    append(lake, 0)
    pinned = append(lake, 1)
    lake.pin("t", pinned, "training")
    lake.pin("t", pinned, "training")
    for number in range(2, MOST_SNAPSHOTS + 10):
        append(lake, number)
    assert sorted(lake.read("t", snapshot_id=pinned)["number"]) == [0, 1]


def test_a_snapshot_that_is_gone_cannot_be_pinned(lake: Lake) -> None:
    append(lake, 0)
    with pytest.raises(StateError, match="no longer has snapshot 12345"):
        lake.pin("t", 12345, "training")
