from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given, settings
from pyarrow.fs import FileInfo, FileSelector
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import PyArrowLocalFileSystem

from features.compaction import compact
from features.lake import Lake
from features.maintenance import Expiry, expire, history, tables_of
from features.snapshots import MOST_SNAPSHOTS, let_go_of_old_snapshots, to_let_go
from features.transaction import let_go
from perennial.errors import ConflictError, StateError, UsageError
from perennial.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path / "a home"), "toys")


def sold(*ids: int) -> pl.DataFrame:
    """Sales on two days in turn."""
    return pl.DataFrame(
        {"sale": list(ids), "event_timestamp": [T0 + timedelta(days=i % 2, seconds=i) for i in ids]},
        schema={"sale": pl.Int64, "event_timestamp": pl.Datetime("us", "UTC")},
    )


def ids(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["sale"].to_list())


def files(lake: Lake, suffix: str = "") -> set[Path]:
    root = lake.settings.root / "lake"
    return {path for path in root.rglob(f"*{suffix}") if path.is_file()}


def expire_all(lake: Lake, keep: int = 1) -> Expiry:
    """As if a minute had passed: every file is old."""
    return expire(lake, "sold", keep, timedelta(0), datetime.now(UTC) + MINUTE)


# history


def test_the_history_of_a_table_is_its_snapshots_with_their_rows_and_positions_newest_first(lake: Lake) -> None:
    first = lake.append("sold", sold(0, 1, 2), {0: 3})
    second = lake.append("sold", sold(3), {0: 4, 1: 1})
    lake.pin("sold", first.snapshot_id, "training")
    lake.existing("sold").delete("sale = 3")
    third, newer, older = history(lake, "sold")
    assert (third.operation, third.total_rows, dict(third.offsets), third.names) == ("overwrite", 3, {}, ())
    assert (newer.snapshot_id, newer.operation, newer.added_rows, newer.total_rows) == (
        second.snapshot_id,
        "append",
        1,
        4,
    )
    assert (newer.files, dict(newer.offsets), newer.names) == (3, {0: 4, 1: 1}, ())
    assert (older.snapshot_id, older.added_rows, older.total_rows, older.files) == (first.snapshot_id, 3, 3, 2)
    assert older.names == ("training",)
    before = sum(path.stat().st_size for path in files(lake, ".parquet"))
    assert newer.size_bytes == before
    assert abs(datetime.now(UTC) - newer.committed) < MINUTE


def test_tables_are_found_by_name_or_all_of_them(lake: Lake) -> None:
    with pytest.raises(StateError, match="no tables of toys yet; run `perennial ingest toys`"):
        tables_of(lake, None)
    lake.append("sold", sold(0))
    lake.append("returned", sold(0))
    assert tables_of(lake, None) == ["returned", "sold"]
    assert tables_of(lake, "sold") == ["sold"]
    with pytest.raises(UsageError, match=r"no table toys\.lost; it has returned, sold"):
        tables_of(lake, "lost")


# expire


def test_only_files_that_a_kept_or_named_snapshot_needs_stay(lake: Lake) -> None:
    pinned = lake.append("sold", sold(0), {0: 1}).snapshot_id
    lake.pin("sold", pinned, "training")
    for number in range(1, 9):
        lake.append("sold", sold(number), {0: number + 1})
    compact(lake, "sold")
    before = {path: path.stat().st_size for path in files(lake) if path.suffix != ".json"}
    done = expire_all(lake)
    assert (done.snapshots_gone, done.snapshots_kept) == (8, 2)
    gone = before.keys() - files(lake)
    assert (done.files_deleted, done.deleted_bytes) == (len(gone), sum(before[path] for path in gone))
    # Two days compacted, and the day file of the first append, which the pin needs.
    assert len(files(lake, ".parquet")) == 3
    # A manifest and a manifest list each; the newest metadata and the four before it.
    assert len(files(lake, ".metadata.json")) == 5
    assert ids(lake.read("sold")) == list(range(9))
    assert ids(lake.read("sold", snapshot_id=pinned)) == [0]
    assert lake.offsets("sold") == {0: 9}
    assert expire_all(lake).files_deleted <= 1  # the metadata file that the letting go made old


def test_young_files_of_a_writer_at_work_are_left_alone(lake: Lake) -> None:
    lake.append("sold", sold(0))
    data = next(iter(files(lake, ".parquet")))
    writing = data.with_name("being-written.parquet")
    shutil.copy(data, writing)
    expire(lake, "sold", 1, timedelta(hours=24), datetime.now(UTC))
    assert writing.exists()
    day_ago = (datetime.now(UTC) - timedelta(hours=25)).timestamp()
    os.utime(writing, (day_ago, day_ago))
    assert expire(lake, "sold", 1, timedelta(hours=24), datetime.now(UTC)).files_deleted == 1
    assert not writing.exists()
    assert ids(lake.read("sold")) == [0]


def test_what_iceberg_did_not_write_is_left_alone(lake: Lake) -> None:
    lake.append("sold", sold(0))
    note = next(iter(files(lake, ".parquet"))).with_name("notes.txt")
    note.write_text("do not touch")
    expire_all(lake)
    assert note.exists()


def test_other_tables_are_left_alone(lake: Lake) -> None:
    for number in range(3):
        lake.append("sold", sold(number))
        lake.append("sold_out", sold(number))
    expire_all(lake)
    assert ids(lake.read("sold_out")) == [0, 1, 2]
    assert len(history(lake, "sold_out")) == 3


def test_a_named_number_of_snapshots_stays(lake: Lake) -> None:
    commits = [lake.append("sold", sold(number)).snapshot_id for number in range(6)]
    assert expire_all(lake, keep=3).snapshots_gone == 3
    for number in (3, 4, 5):
        assert ids(lake.read("sold", snapshot_id=commits[number])) == list(range(number + 1))
    with pytest.raises(StateError, match="no longer has snapshot"):
        lake.read("sold", snapshot_id=commits[2])


def test_nothing_is_deleted_where_a_needed_file_is_gone(lake: Lake) -> None:
    for number in range(4):
        lake.append("sold", sold(number))
    lost = next(iter(files(lake, ".parquet")))
    lost.unlink()
    before = files(lake, ".parquet") | files(lake, ".avro")
    with pytest.raises(StateError, match=f"needs {lost}.*nothing was deleted"):
        expire_all(lake)
    assert files(lake, ".parquet") | files(lake, ".avro") == before


def test_nothing_is_deleted_where_files_are_listed_under_other_names(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a store that normalises paths: the table would look as if it needed none of its files."""
    for number in range(4):
        lake.append("sold", sold(number))
    listed = PyArrowLocalFileSystem.get_file_info

    def elsewhere(self: Any, what: Any) -> Any:
        found = listed(self, what)
        if not isinstance(what, FileSelector):
            return found
        return [FileInfo(f"/private{f.path}", f.type, mtime=f.mtime, size=f.size) for f in found]

    monkeypatch.setattr(PyArrowLocalFileSystem, "get_file_info", elsewhere)
    before = files(lake, ".parquet")
    with pytest.raises(StateError, match="nothing was deleted"):
        expire_all(lake)
    assert files(lake, ".parquet") == before


def test_a_table_that_is_not_there_is_told_in_a_sentence(lake: Lake) -> None:
    for work in (lambda: history(lake, "sold"), lambda: expire_all(lake)):
        with pytest.raises(StateError, match=r"no table toys\.sold yet"):
            work()


class Stopped(BaseException):
    """The process ends here."""


def test_an_expiry_stopped_after_any_number_of_deletions_leaves_every_snapshot_readable(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = lake.append("sold", sold(0, 1), {0: 2}).snapshot_id
    lake.pin("sold", pinned, "training")
    for number in range(2, 8):
        lake.append("sold", sold(number), {0: number + 1})
    compact(lake, "sold")
    delete, left = PyArrowLocalFileSystem.delete_file, 0

    def stopping(self: Any, path: str) -> None:
        nonlocal left
        if not left:
            raise Stopped
        left -= 1
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(PyArrowLocalFileSystem, "delete_file", stopping)
        patch.setattr("features.maintenance.DELETES_AT_ONCE", 1)
        stops = 0
        while True:
            left = 1
            try:
                expire_all(lake)
            except Stopped:
                stops += 1
                assert ids(lake.read("sold")) == list(range(8))
                assert ids(lake.read("sold", snapshot_id=pinned)) == [0, 1]
                assert lake.offsets("sold") == {0: 8}
                continue
            break
    assert stops > 10
    assert len(files(lake, ".parquet")) == 4


KILLED = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pyiceberg.io.pyarrow import PyArrowFileIO, PyArrowLocalFileSystem
from features.compaction import compact
from features.lake import Lake
from features.maintenance import expire
from perennial.settings import Settings

steps = int(sys.argv[2])

def stepping(function):
    def step(*arguments, **named):
        global steps
        if not steps:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
        return function(*arguments, **named)
    return step

PyArrowLocalFileSystem.delete_file = stepping(PyArrowLocalFileSystem.delete_file)
PyArrowFileIO.new_output = stepping(PyArrowFileIO.new_output)
lake = Lake(Settings(home=Path(sys.argv[1])), "toys")
compact(lake, "sold")
expire(lake, "sold", 1, timedelta(0), datetime.now(UTC) + timedelta(minutes=1))
"""


def test_compaction_and_expiry_killed_at_any_file_lose_nothing_and_are_run_again(lake: Lake) -> None:
    pinned = lake.append("sold", sold(0, 1), {0: 2}).snapshot_id
    lake.pin("sold", pinned, "training")
    for number in range(2, 9):
        lake.append("sold", sold(number), {0: number + 1})
    for steps in (1, 5, 9, 14, 1000):
        command = [sys.executable, "-c", KILLED, str(lake.settings.home), str(steps)]
        rc = subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode
        assert ids(lake.read("sold")) == list(range(9))
        assert ids(lake.read("sold", snapshot_id=pinned)) == [0, 1]
        assert lake.offsets("sold") == {0: 9}
        assert rc == (0 if steps == 1000 else -signal.SIGKILL)
    assert len(history(lake, "sold")) == 2


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("expire"), st.integers(1, 3)),
        st.tuples(st.just("pin"), st.integers(0, 3)),
        st.tuples(st.just("orphan"), st.just(0)),
    ),
    min_size=5,
    max_size=16,
)


@settings(max_examples=10)
@given(STEPS)
def test_whatever_is_done_in_whatever_order_every_kept_snapshot_reads_as_it_was_written(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as home:
        lake = Lake(Settings(home=Path(home)), "toys")
        lake.append("sold", sold(0), {0: 1})
        rows = 1  # sales are numbered in the order in which they are appended
        contents: dict[int, int] = {}  # rows by snapshot
        pinned: set[int] = set()
        for what, number in [*steps, ("compact", 0), ("expire", 1)]:
            current = lake.snapshot_id("sold")
            assert current is not None
            contents[current] = rows
            if what == "append":
                lake.append("sold", sold(*range(rows, rows + number)), {0: rows + number}, read_from={0: rows})
                rows += number
            elif what == "compact":
                compact(lake, "sold")
            elif what == "expire":
                expire_all(lake, keep=number)
            elif what == "pin":
                kept = [line.snapshot_id for line in history(lake, "sold")]
                chosen = kept[number % len(kept)]
                lake.pin("sold", chosen, f"pin-{chosen}")
                pinned.add(chosen)
            else:
                data = sorted(files(lake, ".parquet"))[0]
                shutil.copy(data, data.with_name(f"{len(files(lake))}-orphan.parquet"))
            current = lake.snapshot_id("sold")
            assert current is not None
            contents[current] = rows
            kept = [line.snapshot_id for line in history(lake, "sold")]
            assert pinned <= set(kept)
            for snapshot in kept:
                assert ids(lake.read("sold", snapshot_id=snapshot)) == list(range(contents[snapshot]))
            assert lake.offsets("sold") == {0: rows}
        assert not [path for path in files(lake, ".parquet") if "orphan" in path.name]


# commits that fail


def test_a_commit_that_the_catalog_refuses_leaves_rows_and_positions_and_its_files_go_later(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1}, read_from={})
    before = files(lake)
    impatient = lake.settings.model_copy(update={"lake_catalog_uri": f"{lake.catalog_uri}?timeout=0.1"})
    Lake(impatient, "toys").offsets("sold")
    holder = sqlite3.connect(lake.settings.root / "lake.db")
    holder.execute("BEGIN IMMEDIATE")  # the table can be read, and nothing committed
    try:
        with pytest.raises(StateError, match="locked"):
            Lake(impatient, "toys").append("sold", sold(1, 2), {0: 3}, read_from={0: 1})
    finally:
        holder.rollback()
        holder.close()
    orphans = files(lake) - before
    assert {path.suffix for path in orphans} == {".parquet", ".avro", ".json"}
    assert ids(lake.read("sold")) == [0]
    assert lake.offsets("sold") == {0: 1}
    lake.append("sold", sold(1, 2), {0: 3}, read_from={0: 1})
    assert ids(lake.read("sold")) == [0, 1, 2]
    expire_all(lake)
    assert not orphans & files(lake)
    assert ids(lake.read("sold")) == [0, 1, 2]


FULL = """
import resource, sys
from pathlib import Path
import polars as pl
from features.lake import Lake
from perennial.errors import StateError
from perennial.settings import Settings
from tests_of import many

lake = Lake(Settings(home=Path(sys.argv[1])), "toys")
lake.offsets("sold")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    lake.append("sold", many(), {0: 100_001}, read_from={0: 1})
except StateError as error:
    print(error)
"""


def test_data_files_that_find_no_room_leave_rows_and_positions_and_go_later(lake: Lake, tmp_path: Path) -> None:
    """The system refuses the process files of more than 200 kB, half-way through the data file."""
    many = (
        "import polars as pl\nfrom datetime import UTC, datetime\n"
        "def many():\n"
        "    at = pl.lit(datetime(2026, 1, 1, tzinfo=UTC)).cast(pl.Datetime('us', 'UTC'))\n"
        "    return pl.select(sale=pl.int_range(100_000).hash().reinterpret(signed=True)).with_columns(event_timestamp=at)\n"
    )
    (tmp_path / "tests_of.py").write_text(many)
    lake.append("sold", sold(0), {0: 1}, read_from={})
    before = files(lake)
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", FULL, str(lake.settings.home)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "did not take 100,000 rows" in ran.stdout
    assert ids(lake.read("sold")) == [0]
    assert lake.offsets("sold") == {0: 1}
    cut = files(lake) - before
    assert [path.suffix for path in cut] == [".parquet"]
    expire_all(lake)
    assert not cut & files(lake)


# names and letting go at once


def test_a_snapshot_that_is_named_while_it_is_being_let_go_of_stays(lake: Lake) -> None:
    commits = [lake.append("sold", sold(number)).snapshot_id for number in range(6)]
    read_before = lake.existing("sold")
    old = to_let_go(read_before, 1)
    assert commits[0] in old
    lake.pin("sold", commits[0], "training")
    with pytest.raises(CommitFailedException):
        let_go(read_before, old)
    assert ids(lake.read("sold", snapshot_id=commits[0])) == [0]
    assert expire_all(lake).snapshots_kept == 2
    assert ids(lake.read("sold", snapshot_id=commits[0])) == [0]


def test_a_snapshot_that_is_let_go_of_while_it_is_being_named_is_told(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = [lake.append("sold", sold(number)).snapshot_id for number in range(6)]
    existing, others = Lake.existing, [1]

    def overtaken(self: Lake, table: str) -> Any:
        read = existing(self, table)
        if others:
            others.pop()
            expire_all(lake)
        return read

    monkeypatch.setattr(Lake, "existing", overtaken)
    with pytest.raises(StateError, match="no longer has snapshot"):
        lake.pin("sold", commits[0], "training")


def test_two_writers_that_tidy_up_at_once_do_not_fail(lake: Lake) -> None:
    for number in range(MOST_SNAPSHOTS):
        lake.append("sold", sold(number))
    lake.existing("sold").append(sold(10).to_arrow(compat_level=pl.CompatLevel.oldest()))
    first, second = lake.existing("sold"), lake.existing("sold")
    assert len(first.metadata.snapshots) == MOST_SNAPSHOTS + 1
    let_go_of_old_snapshots(first)
    let_go_of_old_snapshots(second)
    assert ids(lake.read("sold")) == list(range(11))


def test_the_last_snapshot_that_tells_positions_stays_however_many_others_commit(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1})
    lake.append("sold", sold(1), {0: 2})
    for number in range(2, 6):
        lake.existing("sold").append(sold(number).to_arrow(compat_level=pl.CompatLevel.oldest()))
    expire_all(lake)
    assert lake.offsets("sold") == {0: 2}
    assert ids(lake.read("sold")) == list(range(6))


def test_writers_that_keep_coming_first_are_told(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = [lake.append("sold", sold(number)).snapshot_id for number in range(8)]
    existing: Callable[[Lake, str], Any] = Lake.existing
    to_name = iter(commits)

    def overtaken(self: Lake, table: str) -> Any:
        read = existing(self, table)
        snapshot = next(to_name)
        existing(self, table).manage_snapshots().create_tag(snapshot, f"pin-{snapshot}").commit()
        return read

    monkeypatch.setattr("features.maintenance.COMMIT_TRIES", 3)
    monkeypatch.setattr(Lake, "existing", overtaken)
    with pytest.raises(ConflictError, match="other writers committed"):
        expire_all(lake)
    monkeypatch.undo()
    assert [line.snapshot_id for line in history(lake, "sold")] == commits[::-1]
