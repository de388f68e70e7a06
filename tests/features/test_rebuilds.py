"""How time is cut for a backfill, and what a feature table tells of the definitions that built it."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from test_online_store import SPEC, T0, VIEW, frame, toys

from features.backfill import slices
from features.built import not_of_rebuild, read_built, warnings
from features.lake import Lake
from features.replacement import replace_rows, write_files
from features.store import view_table
from perennial.errors import ConflictError, StateError
from perennial.settings import Settings

TABLE = view_table(VIEW)
CHANGED = toys(features=["shop_price_mean_1h"])
DAY = timedelta(days=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), SPEC.name)


def test_slices_follow_one_another_and_hold_about_as_many_rows_as_they_may() -> None:
    chance = random.Random(4)
    spans = [
        (T0 + n * DAY, T0 + n * DAY + chance.uniform(0.5, 1.5) * DAY, chance.randrange(1, 3_000)) for n in range(50)
    ]
    rows = [begin + (end - begin) * part / count for begin, end, count in spans for part in range(count)]
    cut = list(slices(spans, 1_000, timedelta(hours=1)))
    assert cut[0][0] is None
    assert cut[-1][1] is None
    assert all(one[1] == other[0] for one, other in pairwise(cut))
    edges = [edge for _, edge in cut[:-1] if edge]
    assert edges == sorted(edges)
    held = [sum((since or T0) <= at < (until or T0 + 999 * DAY) for at in rows) for since, until in cut]
    assert sum(held) == len(rows)
    assert max(held) <= 1_500
    assert len(held) < 2 * len(rows) / 1_000


def test_no_slice_is_shorter_than_what_is_read_before_it() -> None:
    spans = [(T0 + n * timedelta(minutes=1), T0 + (n + 1) * timedelta(minutes=1), 1_000) for n in range(600)]
    edges = [edge for _, edge in slices(spans, 1_000, timedelta(hours=1)) if edge]
    assert min(other - one for one, other in pairwise(edges)) >= timedelta(hours=1)
    assert 8 <= len(edges) <= 10


def test_without_events_or_statistics_there_is_one_slice() -> None:
    assert list(slices([], 1_000, DAY)) == [(None, None)]
    assert list(slices([(T0, T0, 10**6)], 1_000, DAY)) == [(None, None)]


def test_a_table_that_does_not_tell_is_not_warned_of_but_what_was_added_since_is(lake: Lake) -> None:
    assert read_built(lake, SPEC, VIEW).words["perennial.definitions"] == ""
    lake.append(TABLE, frame(("a", T0, T0, 1.0, 1.0)))
    old = read_built(lake, SPEC, VIEW)
    assert old.warning is None
    assert "is not known; `perennial features backfill toys --view shop_prices`" in str(old.unknown)
    rows = frame(("a", T0 + DAY, T0, 1.0, 1.0))
    lake.append(TABLE, rows, properties=old.holding(rows).words)
    assert warnings(lake, SPEC) == ()
    (sentence,) = warnings(lake, CHANGED)
    assert "`perennial features backfill toys --view shop_prices`" in sentence


def test_a_definition_that_was_tried_and_taken_back_is_told_until_its_rows_are_gone(lake: Lake) -> None:
    rows = frame(("a", T0, T0, 1.0, 1.0))
    for spec in (SPEC, CHANGED, SPEC):
        known = read_built(lake, spec, spec.views[0])
        lake.append(TABLE, rows.clear(), properties=known.holding(rows.clear()).words)
        lake.append(TABLE, rows, properties=known.holding(rows).words)
    assert len(warnings(lake, SPEC)) == 1
    known = read_built(lake, SPEC, VIEW)
    replace_rows(lake, TABLE, write_files(lake, TABLE, rows), {}, known.anew().words, known.still)
    assert warnings(lake, SPEC) == ()
    assert len(warnings(lake, CHANGED)) == 1


def test_a_row_of_a_rebuild_is_newer_than_any_of_those_before(lake: Lake) -> None:
    none = read_built(lake, SPEC, VIEW)
    many = frame(("a", T0, T0 + timedelta(microseconds=10**8), 1.0, 1.0))
    few = frame(("a", T0, T0 + timedelta(microseconds=1), 1.0, 1.0))
    assert none.dated(many).equals(many)
    once, twice = none.anew(), none.anew().anew()
    order = [f["created_timestamp"][0] for f in (none.dated(many), once.dated(few), once.dated(many), twice.dated(few))]
    assert order == sorted(set(order))
    unknown = few.with_columns(pl.lit(None).cast(pl.Datetime("us", "UTC")).alias("created_timestamp"))
    # As of a clock: before the event, in the hours of the rebuilds, and long after.
    clocks = [frame(("a", T0, T0 + hours * timedelta(hours=1), 1.0, 1.0)) for hours in (-1, 0.5, 1.5, 3, 9_000)]
    ours = [twice.dated(many), twice.dated(few)]
    others = [none.dated(many), once.dated(few), unknown, *clocks]
    assert not_of_rebuild(pl.concat([*ours, *others]), 2).equals(pl.concat(others))


def test_rows_are_replaced_by_one_commit_and_files_of_many_days_count_right(lake: Lake) -> None:
    old = frame(*(("a", T0 + n * DAY, T0, 1.0, 1.0) for n in range(60)))
    lake.append(TABLE, old.head(30), {0: 3}, properties={"perennial.told": "before"})
    pinned = lake.append(TABLE, old.tail(30), {0: 7}).snapshot_id
    new = frame(*(("b", T0 + n * DAY, T0, 2.0, 2.0) for n in range(40)))
    files = [*write_files(lake, TABLE, new.head(25)), *write_files(lake, TABLE, new.tail(15))]
    assert lake.read(TABLE).height == lake.rows(TABLE) == 60
    with pytest.raises(ConflictError, match="beyond"):
        replace_rows(lake, TABLE, files, {0: 6}, {}, {})
    with pytest.raises(ConflictError, match="replaced the rows"):
        replace_rows(lake, TABLE, files, {0: 9}, {}, {"perennial.told": None})
    assert lake.snapshot_id(TABLE) == pinned
    assert replace_rows(lake, TABLE, files, {0: 9}, {}, {"perennial.told": "before"}).rows == 40
    assert lake.read(TABLE).sort("event_timestamp").equals(new)
    assert lake.rows(TABLE) == 40
    assert lake.offsets(TABLE) == {0: 9}
    assert lake.words(TABLE)["perennial.told"] == "before"
    assert lake.read(TABLE, snapshot_id=pinned).sort("event_timestamp").equals(old)
    lake.append(TABLE, old.head(1), {0: 10})
    assert lake.rows(TABLE) == lake.read(TABLE).height == 41


def test_a_table_that_is_partitioned_otherwise_is_told_in_a_sentence(lake: Lake) -> None:
    rows = frame(("a", T0, T0, 1.0, 1.0))
    lake.append(TABLE, rows, partition_by=None)
    with pytest.raises(StateError, match="not partitioned by the day"):
        write_files(lake, TABLE, rows)
