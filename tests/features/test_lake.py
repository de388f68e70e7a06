from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from features.lake import Lake, rows_of
from perennial.errors import ConflictError, StateError
from perennial.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "a home")


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings, "toys")


def sold(*ids: int) -> pl.DataFrame:
    """One sale an hour; the id says which hour."""
    return pl.DataFrame(
        {"sale": list(ids), "event_timestamp": [T0 + timedelta(hours=i) for i in ids]},
        schema={"sale": pl.Int64, "event_timestamp": pl.Datetime("us", "UTC")},
    )


def ids(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["sale"].to_list())


def test_rows_and_positions_are_in_one_commit(lake: Lake) -> None:
    first = lake.append("sold", sold(0, 1, 2), {0: 3})
    second = lake.append("sold", sold(3), {1: 1})
    assert (first.rows, dict(first.offsets)) == (3, {0: 3})
    assert (second.rows, dict(second.offsets)) == (1, {0: 3, 1: 1})
    assert lake.offsets("sold") == {0: 3, 1: 1}
    assert lake.snapshot_id("sold") == second.snapshot_id
    assert lake.rows("sold") == 4
    # The older snapshot still holds what it held.
    assert ids(lake.read("sold", snapshot_id=first.snapshot_id)) == [0, 1, 2]


def test_positions_survive_commits_that_carry_none(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 10, 1: 20})
    lake.append("sold", sold(1))
    lake.append("sold", sold(2).with_columns(colour=pl.lit("red")))
    assert lake.offsets("sold") == {0: 10, 1: 20}


def test_positions_move_even_where_there_are_no_rows(lake: Lake) -> None:
    lake.append("sold", sold(), {0: 7})
    assert lake.offsets("sold") == {0: 7}
    assert lake.rows("sold") == 0


def test_a_table_that_is_not_there_holds_nothing(lake: Lake) -> None:
    assert lake.offsets("sold") == {}
    assert lake.rows("sold") == 0
    assert lake.snapshot_id("sold") is None
    assert lake.property("sold", "x") is None
    with pytest.raises(StateError, match=r"no table toys\.sold yet; run `perennial ingest toys`"):
        lake.read("sold")


def test_rows_are_read_by_event_time_with_the_end_left_out(lake: Lake) -> None:
    lake.append("sold", sold(*range(72)))
    assert ids(lake.read("sold", since=T0 + timedelta(hours=23))) == list(range(23, 72))
    assert ids(lake.read("sold", until=T0 + timedelta(hours=25))) == list(range(25))
    assert ids(lake.read("sold", T0 + timedelta(hours=24), T0 + timedelta(hours=26))) == [24, 25]
    assert lake.read("sold", columns=("sale",)).columns == ["sale"]
    assert lake.read("sold").schema == sold().schema


def test_days_outside_the_range_are_not_opened(lake: Lake, settings: Settings) -> None:
    lake.append("sold", sold(*range(72)))
    for path in (settings.root / "lake").rglob("*day=2026-01-03*/*.parquet"):
        path.unlink()
    assert ids(lake.read("sold", until=T0 + timedelta(hours=48))) == list(range(48))
    with pytest.raises((StateError, OSError)):
        lake.read("sold")


def placed(partition: int, *offsets: int) -> pl.DataFrame:
    """Sales at places in Kafka: the id tells both."""
    return sold(*(1000 * partition + offset for offset in offsets)).with_columns(
        kafka_partition=pl.lit(partition, pl.Int32), kafka_offset=pl.Series(offsets, dtype=pl.Int64)
    )


def test_rows_are_read_by_place_with_the_end_left_out(lake: Lake) -> None:
    lake.append("sold", pl.concat([placed(0, 0, 1, 2), placed(1, 0, 1)]), {0: 3, 1: 2})
    lake.append("sold", pl.concat([placed(0, 3), placed(2, 0)]), {0: 4, 2: 1})
    assert ids(lake.read_places("sold", {}, lake.offsets("sold"))) == [0, 1, 2, 3, 1000, 1001, 2000]
    assert ids(lake.read_places("sold", {0: 2, 1: 2}, {0: 4, 1: 2, 2: 1})) == [2, 3, 2000]
    # Partitions without an end are left out, and so are those that end before they begin.
    assert ids(lake.read_places("sold", {0: 3, 1: 1}, {1: 2})) == [1001]
    assert ids(lake.read_places("sold", {0: 3}, {0: 1})) == []
    nothing = lake.read_places("sold", {0: 4, 1: 2, 2: 1}, lake.offsets("sold"))
    assert nothing.is_empty()
    assert nothing.schema == placed(0).schema
    assert lake.read_places("sold", {}, {0: 1}, columns=("sale",)).to_dicts() == [{"sale": 0}]


@pytest.mark.parametrize("kept", [100, 4, 0])
def test_a_data_file_that_cannot_be_read_is_told(kept: int, lake: Lake, settings: Settings) -> None:
    lake.append("sold", sold(0))
    (path,) = (settings.root / "lake").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StateError, match=r"a file of the lake at .* cannot be read"):
        lake.read("sold")


def test_pyiceberg_reads_where_an_option_is_given_that_polars_does_not_know(settings: Settings) -> None:
    """Polars would leave it out, and read with other rights than those that the lake is written with."""
    role = {"s3.role-arn": "arn:aws:iam::123456789012:role/lake"}
    for options, reader in ((role, "PythonDataset SCAN"), ({"client.region": "eu-central-1"}, "Parquet SCAN")):
        lake = Lake(settings.model_copy(update={"lake_options": options}), "toys")
        lake.append("sold", sold(0))
        assert reader in rows_of(lake.existing("sold")).explain()
    assert ids(lake.read("sold")) == [0, 0]


def test_files_of_other_places_are_not_opened(lake: Lake, settings: Settings) -> None:
    """Rows of one day: it is the columns' statistics that tell the files apart."""
    lake.append("sold", placed(0, 0, 1), {0: 2})
    before = set((settings.root / "lake").rglob("*.parquet"))
    lake.append("sold", placed(0, 2, 3), {0: 4})
    lake.append("sold", placed(1, 7), {1: 8})
    for path in before:
        path.unlink()
    assert ids(lake.read_places("sold", {0: 2, 1: 7}, {0: 4, 1: 8})) == [2, 3, 1007]
    with pytest.raises((StateError, OSError)):
        lake.read_places("sold", {0: 1}, {0: 4})


def test_places_of_as_many_partitions_as_a_topic_may_have_are_read(lake: Lake) -> None:
    """Of one filter with a term for each, pyiceberg would make a minute's work."""
    rows = pl.concat([placed(p, 0, 1) for p in range(300)])
    lake.append("sold", rows.with_columns(event_timestamp=pl.lit(T0).cast(rows.schema["event_timestamp"])))
    found = lake.read_places("sold", dict.fromkeys(range(300), 1), dict.fromkeys(range(300), 2))
    assert ids(found) == [1000 * p + 1 for p in range(300)]


def test_a_property_is_what_the_newest_snapshot_that_tells_it_says(lake: Lake) -> None:
    lake.append("sold", sold(0), properties={"perennial.built-to": "1", "note": "first"})
    lake.append("sold", sold(1), properties={"perennial.built-to": "2"})
    lake.append("sold", sold(2))
    lake.existing("sold").delete("sale = 0")
    assert lake.property("sold", "perennial.built-to") == "2"
    assert lake.property("sold", "note") == "first"
    assert lake.property("sold", "another") is None


def test_a_property_of_perennials_own_outlives_the_snapshot_that_told_it_first(lake: Lake) -> None:
    lake.append("sold", sold(0), properties={"perennial.built-to": "1"})
    for number in range(1, 25):
        lake.append("sold", sold(number))
    assert lake.property("sold", "perennial.built-to") == "1"


def test_a_snapshot_says_what_it_was_told_to(lake: Lake) -> None:
    lake.append("sold", sold(0), properties={"built-from": "12"})
    assert lake.property("sold", "built-from") == "12"
    assert lake.property("sold", "another") is None


def test_a_new_column_is_null_in_the_rows_before(lake: Lake) -> None:
    lake.append("sold", sold(0))
    lake.append("sold", sold(1).with_columns(colour=pl.lit("red")))
    lake.append("sold", sold(2))
    assert lake.read("sold").sort("sale")["colour"].to_list() == [None, "red", None]


def test_a_column_of_another_type_is_refused_and_nothing_is_kept(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1})
    with pytest.raises(StateError, match="sold"):
        lake.append("sold", sold(1).with_columns(sale=pl.lit("one")), {0: 2})
    assert (lake.rows("sold"), lake.offsets("sold")) == (1, {0: 1})


class Overtaken(Lake):
    """A lake in which another writer commits after this one has read the table and before it writes."""

    def _table(self, *arguments: Any) -> Any:
        table = super()._table(*arguments)
        Lake(Settings(home=Path(self.catalog_uri.removeprefix("sqlite:///")).parent), "toys").append(
            "sold", sold(100), {0: 50}
        )
        return table


def test_the_second_of_two_writers_keeps_nothing_and_doubles_nothing(lake: Lake, settings: Settings) -> None:
    lake.append("sold", sold(0), {0: 1})
    with pytest.raises(ConflictError, match=r"another writer committed to toys\.sold first"):
        Overtaken(settings, "toys").append("sold", sold(1, 2), {0: 3})
    assert ids(lake.read("sold")) == [0, 100]
    assert lake.offsets("sold") == {0: 50}
    lake.append("sold", sold(1, 2), {0: 53})
    assert ids(lake.read("sold")) == [0, 1, 2, 100]


def append_until_taken(home: Path, numbers: range, told: Any) -> None:
    lake = Lake(Settings(home=home), "toys")
    conflicts = 0
    for number in numbers:
        while True:
            try:
                lake.append("sold", sold(number), {number % 2: number})
                break
            except ConflictError:
                conflicts += 1
    told.put(conflicts)


def test_two_processes_that_try_again_after_conflicts_lose_and_double_nothing(lake: Lake, settings: Settings) -> None:
    processes = multiprocessing.get_context("spawn")
    told = processes.Queue()
    writers = [
        processes.Process(target=append_until_taken, args=(settings.home, numbers, told))
        for numbers in (range(0, 12, 2), range(1, 12, 2))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(90)
        assert writer.exitcode == 0
    assert ids(lake.read("sold")) == list(range(12))
    assert lake.offsets("sold") == {0: 10, 1: 11}


def test_files_of_a_commit_that_never_came_are_not_read(lake: Lake, settings: Settings) -> None:
    """Killed after its data files and before its commit, a writer leaves files that no snapshot names."""
    lake.append("sold", sold(0))
    data = next((settings.root / "lake").rglob("*.parquet"))
    shutil.copy(data, data.with_name("half-written.parquet"))
    data.with_name("cut.parquet").write_bytes(data.read_bytes()[:100])
    lake.append("sold", sold(1))
    assert ids(lake.read("sold")) == [0, 1]


def test_a_table_without_its_first_commit_is_gone_on_with(lake: Lake) -> None:
    """Killed between the table's making and its first rows, a writer leaves an empty table."""
    arrow = sold().to_arrow(compat_level=pl.CompatLevel.oldest())
    lake._create("sold", arrow.schema, "event_timestamp")
    assert (lake.offsets("sold"), lake.rows("sold"), lake.snapshot_id("sold")) == ({}, 0, None)
    assert lake.read("sold").is_empty()
    assert lake.append("sold", sold(0), {0: 1}).rows == 1


def test_a_catalog_that_is_no_database_is_told_in_a_sentence(settings: Settings, lake: Lake) -> None:
    settings.root.mkdir(parents=True)
    (settings.root / "lake.db").write_bytes(b"not a database at all, not at all" * 100)
    with pytest.raises(StateError, match=r"lake\.db"):
        lake.append("sold", sold(0))


def test_a_catalog_that_somebody_holds_is_told_in_a_sentence(settings: Settings, lake: Lake) -> None:
    impatient = settings.model_copy(update={"lake_catalog_uri": f"{lake.catalog_uri}?timeout=0.1"})
    lake.append("sold", sold(0))
    holder = sqlite3.connect(settings.root / "lake.db")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StateError, match="locked"):
            Lake(impatient, "toys").append("sold", sold(1))
    finally:
        holder.rollback()
        holder.close()
    assert ids(lake.read("sold")) == [0]


def test_rows_read_from_positions_that_moved_since_are_refused(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1}, read_from={})
    lake.append("sold", sold(1, 2), {0: 3}, read_from={0: 1})
    with pytest.raises(ConflictError, match=r"another writer moved toys\.sold from \{0: 1\} to \{0: 3\}"):
        lake.append("sold", sold(1), {0: 2}, read_from={0: 1})
    assert ids(lake.read("sold")) == [0, 1, 2]
    assert lake.offsets("sold") == {0: 3}


def test_positions_survive_a_commit_of_another_iceberg_client(lake: Lake) -> None:
    lake.append("sold", sold(0, 1, 2), {0: 3})
    lake.existing("sold").delete("sale = 1")
    assert ids(lake.read("sold")) == [0, 2]
    assert lake.offsets("sold") == {0: 3}


def test_a_table_whose_positions_are_lost_is_told_instead_of_read_from_its_beginning(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1})
    table = lake.existing("sold")
    told = [s.snapshot_id for s in table.metadata.snapshots]
    table.append(sold(1).to_arrow(compat_level=pl.CompatLevel.oldest()))
    table.maintenance.expire_snapshots().by_ids(told).commit()
    with pytest.raises(StateError, match="tells its Kafka positions"):
        lake.offsets("sold")


def test_a_commit_counts_though_tidying_up_after_it_fails(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("features.lake.let_go_of_old_snapshots", fails)
    assert lake.append("sold", sold(0), {0: 1}).rows == 1
    assert ids(lake.read("sold")) == [0]


def test_a_snapshot_that_never_was_is_told_in_a_sentence(lake: Lake) -> None:
    lake.append("sold", sold(0))
    with pytest.raises(StateError, match="no longer has snapshot 7"):
        lake.read("sold", snapshot_id=7)


def test_the_default_catalog_does_not_wait_for_the_disk_and_survives_a_kill(lake: Lake, settings: Settings) -> None:
    lake.append("sold", sold(0), {0: 1})
    with lake.catalog.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
    killed = "import os, sys; from pathlib import Path; from features.lake import Lake; " + (
        "from perennial.settings import Settings; import tests.features.test_lake as t; "
        "Lake(Settings(home=Path(sys.argv[1])), 'toys').append('sold', t.sold(1), {0: 2}); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", killed, str(settings.home)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    assert subprocess.run(command, cwd=root, env=environment, check=False).returncode == -9
    assert (ids(lake.read("sold")), lake.offsets("sold")) == ([0, 1], {0: 2})


def test_a_new_catalog_whose_tables_another_process_makes_meanwhile_is_opened(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_tables, overtaken = SqlCatalog.create_tables, []

    def after_another(self: SqlCatalog) -> None:
        if not overtaken:
            overtaken.append(True)
            create_tables(self)
            with self.engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE iceberg_tables (n INTEGER)")
        create_tables(self)

    monkeypatch.setattr(SqlCatalog, "create_tables", after_another)
    assert lake.append("sold", sold(0), {0: 1}).rows == 1
    assert overtaken
