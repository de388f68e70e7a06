from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from features.lake import Lake
from flows.context import open_context
from perennial.cli import app
from perennial.errors import StateError, UsageError
from perennial.settings import Settings, settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.cache_clear()
    open_context.cache_clear()
    yield Lake(Settings(home=tmp_path), "flights")
    settings.cache_clear()
    open_context.cache_clear()


def append(lake: Lake, number: int, table: str = "departed") -> int:
    row = pl.DataFrame(
        {"event_timestamp": [T0 + timedelta(minutes=number)], "number": [number]},
        schema={"event_timestamp": pl.Datetime("us", "UTC"), "number": pl.Int64},
    )
    return lake.append(table, row, {0: 1000 + number}).snapshot_id


def said(*arguments: str) -> str:
    ran = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["lake", *arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_history_shows_each_tables_snapshots_with_their_positions_and_names(lake: Lake) -> None:
    first, second = append(lake, 0), append(lake, 1)
    append(lake, 0, "arrived")
    lake.pin("departed", first, "training")
    shown = said("history", "flights")
    assert shown.index("flights.arrived") < shown.index("flights.departed")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    # Two lines a snapshot.
    newer = next(one + two for one, two in itertools.pairwise(lines) if str(second) in two)
    older = next(one + two for one, two in itertools.pairwise(lines) if str(first) in two)
    assert "append" in newer
    assert "0: 1,001" in newer
    assert "training" in older
    assert "training" not in newer
    assert "flights.arrived" not in said("history", "flights", "--table", "departed")
    assert "departed" in said("history", "flights", "--table", "flights.departed")


def test_compact_and_expire_tell_what_they_did(lake: Lake) -> None:
    for number in range(5):
        append(lake, number)
    assert said("compact", "flights") == "departed: 5 files -> 1, 5 rows written again\n"
    assert said("compact", "flights") == "departed: 1 file, nothing to do\n"
    # A day ago nothing of this was there.
    assert said("expire", "flights") == "departed: 2 snapshots let go, 4 kept; 0 files older than 24 h deleted (0 B)\n"
    two_hours_ago = time.time() - 2 * 3600
    for file in (lake.settings.root / "lake").rglob("*.*"):
        os.utime(file, (two_hours_ago, two_hours_ago))
    told = said("expire", "flights", "--keep", "1", "--older-than", "1", "--table", "departed")
    assert told.startswith("departed: 3 snapshots let go, 1 kept; ")
    assert len(list((lake.settings.root / "lake").rglob("*.parquet"))) == 1
    assert sorted(lake.read("departed")["number"]) == [0, 1, 2, 3, 4]
    assert lake.offsets("departed") == {0: 1004}


@pytest.mark.parametrize("command", ["history", "compact", "expire"])
def test_what_is_not_there_is_told_in_a_sentence(command: str, lake: Lake) -> None:
    run = CliRunner().invoke
    absent = run(app, ["lake", command, "nothing"]).exception
    assert isinstance(absent, UsageError)
    assert "nothing" in str(absent)
    empty = run(app, ["lake", command, "flights"]).exception
    assert isinstance(empty, StateError)
    assert "perennial ingest flights" in str(empty)
    append(lake, 0)
    misspelt = run(app, ["lake", command, "flights", "--table", "depart"]).exception
    assert isinstance(misspelt, UsageError)
    assert "it has departed" in str(misspelt)


def test_keeping_no_snapshot_is_refused(lake: Lake) -> None:
    append(lake, 0)
    assert CliRunner().invoke(app, ["lake", "expire", "flights", "--keep", "0"]).exit_code == 2
    assert len(lake.existing("departed").metadata.snapshots) == 1


@pytest.mark.parametrize("hours", ["-1", "0", "0.99"])
def test_files_of_the_last_hour_cannot_be_deleted_because_a_writer_may_be_at_work(hours: str, lake: Lake) -> None:
    append(lake, 0)
    data = next((lake.settings.root / "lake").rglob("*.parquet"))
    # Written, and not committed yet.
    written = data.with_name("written.parquet")
    written.write_bytes(data.read_bytes())
    refused = CliRunner().invoke(app, ["lake", "expire", "flights", "--older-than", hours])
    assert refused.exit_code == 2
    assert "0 files older than 1 h deleted" in said("expire", "flights", "--older-than", "1")
    assert written.exists()
