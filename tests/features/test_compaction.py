from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import compaction, transaction
from features.compaction import compact
from features.lake import Lake
from features.maintenance import history
from perennial.errors import ConflictError, StateError
from perennial.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path / "home"), "toys")


def sold(*ids: int, day: int = 0) -> pl.DataFrame:
    """One sale a minute of a day; places in Kafka are the ids."""
    return pl.DataFrame(
        {
            "sale": list(ids),
            "event_timestamp": [T0 + timedelta(days=day, minutes=i) for i in ids],
            "kafka_partition": [0] * len(ids),
            "kafka_offset": list(ids),
        },
        schema={
            "sale": pl.Int64,
            "event_timestamp": pl.Datetime("us", "UTC"),
            "kafka_partition": pl.Int32,
            "kafka_offset": pl.Int64,
        },
    )


def ids(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["sale"].to_list())


def paths(lake: Lake) -> list[str]:
    return [task.file.file_path for task in lake.existing("sold").scan().plan_files()]


def test_a_days_small_files_become_one_and_its_rows_stay_the_same(lake: Lake) -> None:
    for number in range(10):
        lake.append("sold", sold(number, 100 + number, day=number % 2), {0: number + 1})
    done = compact(lake, "sold")
    assert (done.files_before, done.files_after, done.rewritten_rows, done.commits) == (10, 2, 20, 1)
    assert len(paths(lake)) == 2
    expected = pl.concat([sold(n, 100 + n, day=n % 2) for n in range(10)]).sort("event_timestamp")
    assert lake.read("sold").sort("event_timestamp").equals(expected)
    assert lake.rows("sold") == 20


def test_rows_of_a_compacted_file_are_in_order_of_event_time(lake: Lake) -> None:
    for number in (5, 3, 8, 1):
        lake.append("sold", sold(number, number - 1))
    compact(lake, "sold")
    (path,) = paths(lake)
    assert pl.read_parquet(path)["sale"].to_list() == [0, 1, 2, 3, 4, 5, 7, 8]


def test_a_table_with_nothing_to_do_gets_no_new_snapshot(lake: Lake) -> None:
    for number in range(3):
        lake.append("sold", sold(number))
        lake.append("sold", sold(number, day=1 + number))
    snapshot = lake.snapshot_id("sold")
    assert compact(lake, "sold").commits == 0
    assert lake.snapshot_id("sold") == snapshot
    lake.append("sold", sold(3))
    assert compact(lake, "sold").commits == 1
    assert compact(lake, "sold").commits == 0


def test_positions_and_what_else_was_told_are_carried_over(lake: Lake) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1, 7: 70}, properties={"perennial.built-from": f"{number}"})
    lake.append("sold", sold(5))
    compact(lake, "sold")
    assert lake.offsets("sold") == {0: 5, 7: 70}
    assert lake.property("sold", "perennial.built-from") == "4"
    newest = history(lake, "sold")[0]
    assert (newest.operation, newest.total_rows, newest.files, dict(newest.offsets)) == ("replace", 6, 1, {0: 5, 7: 70})


def test_places_are_read_right_across_a_compaction(lake: Lake) -> None:
    for number in range(0, 12, 2):
        lake.append("sold", sold(number, number + 1), {0: number + 2})
    compact(lake, "sold")
    lake.append("sold", sold(12, 13), {0: 14})
    assert ids(lake.read_places("sold", {0: 9}, {0: 13})) == [9, 10, 11, 12]


def test_a_pinned_snapshot_reads_as_it_was(lake: Lake) -> None:
    for number in range(6):
        commit = lake.append("sold", sold(number))
        if number == 3:
            lake.pin("sold", commit.snapshot_id, "training")
            pinned = commit.snapshot_id
    compact(lake, "sold")
    assert ids(lake.read("sold", snapshot_id=pinned)) == [0, 1, 2, 3]


def test_rows_from_before_a_column_came_have_none_in_it_afterwards_too(lake: Lake) -> None:
    for number in range(3):
        lake.append("sold", sold(number))
    lake.append("sold", sold(3).with_columns(colour=pl.lit("red")))
    compact(lake, "sold")
    assert lake.read("sold").sort("sale")["colour"].to_list() == [None, None, None, "red"]


def test_a_table_without_days_or_event_times_is_compacted_too(lake: Lake) -> None:
    for number in range(5):
        lake.append("letters", pl.DataFrame({"reason": [f"{number}"], "raw": [b"\xff"]}), partition_by=None)
    assert compact(lake, "letters").files_after == 1
    assert sorted(lake.read("letters")["reason"]) == ["0", "1", "2", "3", "4"]


def test_files_are_no_larger_than_wanted_and_commits_are_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        lake.append("sold", sold(*range(10 * number, 10 * number + 10)), {0: 10 * number + 10})
    monkeypatch.setattr(compaction, "TARGET_ROWS", 50)
    monkeypatch.setattr(compaction, "COMMIT_BYTES", 1)
    done = compact(lake, "sold")
    assert (done.files_before, done.files_after, done.commits) == (20, 4, 4)
    # One after the other in event time: what looks for an hour opens one of them.
    spans = sorted((min(f), max(f)) for f in (pl.read_parquet(path)["sale"].to_list() for path in paths(lake)))
    assert spans == [(0, 49), (50, 99), (100, 149), (150, 199)]
    assert ids(lake.read("sold")) == list(range(200))
    assert compact(lake, "sold").commits == 0


def test_an_append_that_comes_first_is_neither_lost_nor_doubled(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1})
    replace, others = transaction.replace_files, [5, 6]

    def overtaken(*arguments: Any) -> None:
        if others:
            number = others.pop(0)
            Lake(lake.settings, "toys").append("sold", sold(number), {0: number + 1})
        replace(*arguments)

    monkeypatch.setattr(transaction, "replace_files", overtaken)
    assert compact(lake, "sold").commits == 1
    assert others == []
    assert ids(lake.read("sold")) == list(range(7))
    assert lake.offsets("sold") == {0: 7}
    assert len(paths(lake)) == 3


class Compacting(Lake):
    """A lake that is compacted after a writer has read the table and before it writes."""

    done = 0

    def _table(self, *arguments: Any) -> Any:
        table = super()._table(*arguments)
        if not self.done:
            self.done = compact(Lake(self.settings, self.namespace), "sold").commits
        return table


def test_an_ingest_that_a_compaction_overtakes_goes_on_by_itself(lake: Lake) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1})
    writer = Compacting(lake.settings, "toys")
    assert dict(writer.append("sold", sold(5), {0: 6}, read_from={0: 5}).offsets) == {0: 6}
    assert writer.done == 1
    assert ids(lake.read("sold")) == list(range(6))


def test_an_append_that_would_not_know_whether_it_came_through_is_not_tried_again(lake: Lake) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1})
    with pytest.raises(ConflictError):
        Compacting(lake.settings, "toys").append("sold", sold(5))
    assert ids(lake.read("sold")) == list(range(5))


def test_of_two_compactions_at_once_one_is_told_and_all_rows_are_there(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1})
    replace, overtaken = compaction._replace, []

    def after_another(*arguments: Any) -> None:
        if not overtaken:
            overtaken.append(True)
            compact(Lake(lake.settings, "toys"), "sold")
        replace(*arguments)

    monkeypatch.setattr(compaction, "_replace", after_another)
    with pytest.raises(ConflictError, match="another program rewrote files"):
        compact(lake, "sold")
    assert ids(lake.read("sold")) == list(range(5))
    assert lake.offsets("sold") == {0: 5}


def test_rows_that_another_client_deleted_do_not_come_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(0, 10, 2):
        lake.append("sold", sold(number, number + 1), {0: number + 2})
    replace = compaction._replace

    def after_a_delete(*arguments: Any) -> None:
        lake.existing("sold").delete("sale = 3")
        replace(*arguments)

    monkeypatch.setattr(compaction, "_replace", after_a_delete)
    with pytest.raises(ConflictError):
        compact(lake, "sold")
    assert ids(lake.read("sold")) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    monkeypatch.undo()
    compact(lake, "sold")
    assert ids(lake.read("sold")) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_a_compaction_that_fails_before_its_commit_changes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        lake.append("sold", sold(number), {0: number + 1})

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_replace", disk_full)
        with pytest.raises(OSError, match="No space"):
            compact(lake, "sold")
    assert ids(lake.read("sold")) == list(range(5))
    assert compact(lake, "sold").files_after == 1


def test_a_table_that_is_not_there_is_told_in_a_sentence(lake: Lake) -> None:
    with pytest.raises(StateError, match=r"no table toys\.sold yet"):
        compact(lake, "sold")
