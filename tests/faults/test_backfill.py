from __future__ import annotations

import dataclasses
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from shop import (
    CUSTOMERS,
    FIRST,
    Place,
    Shop,
    all_is_in,
    assert_everything_counts_once,
    backfill_all,
    event_value,
    follow,
    follow_to_the_end,
    make_follower,
    make_spec,
    newest_rows,
    running,
    take_in,
    take_in_again_and_again,
    wait_until,
)
from watched import backfill_until, process_of

from features import backfill as backfilling
from features import ingest
from features.backfill import backfill
from features.built import warnings
from features.maintenance import expire
from features.materialize import materialize
from features.online_check import check_online
from features.store import OnlineWriter, view_table
from perennial.errors import ConflictError, StateError

HOUR = timedelta(hours=1)
MENDS = "`perennial features backfill {} --view of_viewed` builds them anew"


def changed(place: Place) -> Place:
    """The same shop after somebody has changed the definitions of its views."""
    return dataclasses.replace(place, changed=True)


@pytest.fixture(params=["sqlite", "redis"])
def any_store(place: Place, request: pytest.FixtureRequest) -> Place:
    return (
        place if request.param == "sqlite" else dataclasses.replace(place, online=request.getfixturevalue("redis").url)
    )


def newest_with_created(place: Place, view: Any) -> pl.DataFrame:
    rows = place.lake.read(view_table(view)).sort("created_timestamp")
    return rows.unique([view.entity, "event_timestamp"], keep="last").sort("event_timestamp", view.entity)


def assert_online_is_offline(place: Place) -> None:
    checks = check_online(place.spec, place.settings, place.lake, again_after_s=0)
    assert [(check.verdict.status.name, check.differences) for check in checks] == [("PASS", {})] * 2


@pytest.mark.parametrize("most", [200_000, 20])
def test_the_rows_are_those_of_a_fresh_ingest_and_online(
    most: int, any_store: Place, chance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are built in many slices; and the snapshot that was pinned before reads as before."""
    monkeypatch.setattr(backfilling, "MAX_NEW_ROWS", most)
    place, new = any_store, changed(any_store)
    shop = Shop(place, chance)
    for _ in range(3):
        shop.send(100)
        take_in(place)
    lake, pinned = place.lake, {}
    for view in place.spec.views:
        table = view_table(view)
        pinned[table] = lake.snapshot_id(table), lake.read(table)
        lake.pin(table, pinned[table][0], "training")
    done = backfill_all(new)
    assert_everything_counts_once(new)
    assert_online_is_offline(new)
    fresh = dataclasses.replace(new, home=tmp_path / "fresh", online="")
    take_in(fresh)
    for view, told in zip(new.spec.views, done, strict=True):
        table = view_table(view)
        expected = newest_with_created(fresh, view)
        assert told.rows_before == pinned[table][1].height
        assert told.rows_after == lake.rows(table) == expected.height  # each row once: what was corrected is gone
        assert told.online_keys == expected.get_column(view.entity).n_unique()
        anew = lake.read(table).with_columns(pl.col("created_timestamp") - HOUR).sort("event_timestamp", view.entity)
        assert_frame_equal(anew, expected, rel_tol=1e-9, check_column_order=False)
        snapshot, rows = pinned[table]
        order = ["event_timestamp", view.entity, "created_timestamp"]
        assert_frame_equal(lake.read(table, snapshot_id=snapshot).sort(order), rows.sort(order))
    # The stream goes on, late events correct rows of the backfill, and a second backfill changes nothing.
    shop.send(100)
    take_in(new)
    assert_everything_counts_once(new)
    backfill_all(new)
    assert_everything_counts_once(new)
    shop.close()


def test_a_shorter_window_replaces_what_knew_more_events_online(place: Place, shop: Shop) -> None:
    """A row's created time counts the events of its longest window: by it alone, the old value would be the newer one."""
    topic, new = place.spec.events[0].topic, changed(place)
    shop.put(topic, [event_value(f"e{n}", FIRST + n * HOUR, amount=float(n)) for n in range(20)])
    take_in(place)
    view = new.spec.views[0]
    before = OnlineWriter(place.spec, place.settings).read(place.spec.views[0], ["c0"])
    assert before["viewed_amount_mean_1d"].to_list() == [9.5]
    backfill_all(new)
    after = OnlineWriter(new.spec, new.settings).read(view, ["c0"])
    assert after["viewed_amount_mean_1d"].to_list() == [18.0]  # of 17, 18 and 19
    assert after["viewed_amount_mean_5h"].to_list() == [17.0]
    # A late event of the stream corrects the row of the backfill.
    shop.put(topic, [event_value("late", FIRST + 18.5 * HOUR, amount=0.0)])
    take_in(new)
    corrected = OnlineWriter(new.spec, new.settings).read(view, ["c0"])
    assert corrected["viewed_amount_mean_1d"].to_list() == [13.5]
    assert_everything_counts_once(new)


def test_what_no_longer_counts_is_taken_out_of_the_online_store(any_store: Place, chance: Any) -> None:
    """By another field, a key's newest row can be older than it was, and a key can be gone."""
    place = any_store
    spec = make_spec(place.name)
    shop, view = Shop(place, chance), spec.views[0].model_copy(update={"key": "id"})
    by_id = spec.model_copy(update={"views": (view, spec.views[1])})
    shop.put(
        view.topic,
        [
            event_value("moved", FIRST, "gone"),
            event_value("stays", FIRST + HOUR, "moved"),
            event_value("comes", FIRST + 2 * HOUR, "stays"),
        ],
    )
    shop.close()
    take_in(place)
    for number in range(2):
        done = backfill(place.settings, place.lake, by_id, view)
        assert done.removed_keys == (1 if number == 0 else 0)
        assert done.online_keys == 3  # "moved", too, though what was online seemed to be newer
        online = OnlineWriter(by_id, place.settings)
        held = online.read(view, ["moved", "stays", "gone", "comes"])
        times = dict(held.select("customer_id", "event_timestamp").iter_rows())
        assert times == {"moved": FIRST, "stays": FIRST + HOUR, "comes": FIRST + 2 * HOUR}
        (check,) = check_online(by_id.model_copy(update={"views": (view,)}), place.settings, place.lake, 0)
        assert check.verdict.passed


STEPS = [
    ("before writing files", 1),
    ("after writing files", 1),
    ("before the commit of features", 1),  # of the new column
    ("after the commit of features", 1),
    ("before the commit of features", 2),  # of the rows
    ("after the commit of features", 2),
    ("before the online write", 1),
    ("after the online write", 1),
    ("before writing files", 2),  # of the second view
]
AFTER_THE_ROWS = STEPS.index(("after the commit of features", 2))


@pytest.mark.parametrize(("step", "times"), STEPS)
def test_a_backfill_killed_at_a_step_leaves_whole_rows_and_is_mended_by_another(
    step: str, times: int, place: Place, shop: Shop, processes: Any
) -> None:
    new, lake = changed(place), place.lake
    view = new.spec.views[0]
    table = view_table(view)
    shop.send(200)
    take_in(place)
    old = lake.read(table)
    with process_of(processes, backfill_until, new, step, times) as process:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    if STEPS.index((step, times)) < AFTER_THE_ROWS:
        assert_frame_equal(lake.read(table).select(old.columns), old, check_row_order=False)
    else:
        assert lake.rows(table) == newest_rows(new, view).height
        if step.endswith("the online write"):
            materialize(OnlineWriter(new.spec, new.settings), lake, view)
            (check,) = check_online(new.spec.model_copy(update={"views": (view,)}), new.settings, lake, 0)
            assert check.verdict.passed
    shop.send(50)
    take_in(new)
    backfill_all(new)
    assert_everything_counts_once(new)
    assert_online_is_offline(new)
    shop.send(50)
    take_in(new)
    assert_everything_counts_once(new)


def test_files_of_a_killed_backfill_are_deleted_by_expire(place: Place, shop: Shop, processes: Any) -> None:
    new, lake, table = changed(place), place.lake, view_table(place.spec.views[0])
    shop.send(200)
    take_in(place)

    def files() -> set[Path]:
        return set((place.home / "lake").rglob(f"*{table}/data/**/*.parquet"))

    before, rows = files(), lake.read(table)
    with process_of(processes, backfill_until, new, "before the commit of features", 2) as process:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert len(files()) > len(before) > 0
    expire(lake, table, 4, timedelta(0), datetime.now(UTC) + HOUR)
    assert files() == before
    assert_frame_equal(lake.read(table).select(rows.columns), rows, check_row_order=False)


def test_what_an_ingest_commits_during_a_backfill_is_built_too(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send(200)
    take_in(place)
    new, replace, rounds = changed(place), backfilling.replace_rows, []

    def overtaken(*arguments: Any) -> Any:
        if len(rounds) < 3:
            rounds.append(1)
            shop.send(40)
            take_in(new)
        return replace(*arguments)

    monkeypatch.setattr(backfilling, "replace_rows", overtaken)
    backfill_all(new)
    assert len(rounds) == 3
    assert_everything_counts_once(new)


def test_a_backfill_that_another_overtakes_replaces_nothing_and_says_so(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send(200)
    take_in(place)
    new, replace = changed(place), backfilling.replace_rows

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(backfilling, "replace_rows", replace)
        backfill_all(new)
        return replace(*arguments)

    monkeypatch.setattr(backfilling, "replace_rows", overtaken)
    with pytest.raises(ConflictError, match="another writer replaced the rows"):
        backfill_all(new)
    assert_everything_counts_once(new)


def test_an_ingest_that_a_backfill_overtakes_keeps_nothing_and_goes_on(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the backfill moved no positions: the rows of the ingest are not of the newest rebuild."""
    shop.send(200)
    take_in(place)
    new, write_online = changed(place), ingest.write_online
    lake, table = place.lake, view_table(place.spec.views[0])

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(ingest, "write_online", write_online)
        # Of the events that features were built from, so that the positions stay.
        positions = lake.offsets(table)
        monkeypatch.setattr(type(lake), "offsets", lambda *_: positions)
        backfill(new.settings, lake, new.spec, new.spec.views[0])
        monkeypatch.undo()
        assert lake.offsets(table) == positions
        return write_online(*arguments)

    shop.send(100)
    monkeypatch.setattr(ingest, "write_online", overtaken)
    with pytest.raises(ConflictError, match="another writer replaced the rows"):
        take_in(new)
    take_in(new)
    backfill_all(new)
    assert_everything_counts_once(new)


WAYS = {"follower": follow, "micro-batches": take_in_again_and_again}


@pytest.mark.parametrize("way", WAYS)
def test_backfills_beside_an_ingest_lose_and_double_nothing(way: str, place: Place, shop: Shop, processes: Any) -> None:
    new = changed(place)
    shop.send(200)
    take_in(place)
    backfill_all(new)
    ended = processes.Event()
    with process_of(processes, WAYS[way], new, ended) as process:
        with shop.sending(records=15, every_s=0.05):
            for _ in range(4):
                backfill_all(new)
        ended.set()
        process.join(60)
        assert process.exitcode == 0
    take_in(new)
    assert_everything_counts_once(new)
    assert_online_is_offline(new)


def test_a_follower_is_told_once_and_goes_on_after_the_backfill(
    place: Place, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.send(200)
    take_in(place)
    new, sentence = changed(place), MENDS.format(place.name)
    with caplog.at_level(logging.WARNING), running(make_follower(new)):
        shop.send(50)
        wait_until(lambda: all_is_in(new))
        assert caplog.text.count(sentence) == 1
        backfill_all(new)
        shop.send(100)
        wait_until(lambda: all_is_in(new))
        assert "another writer" in caplog.text  # it had a conflict and began again
    assert caplog.text.count(sentence) == 1
    assert_everything_counts_once(new)


def test_a_follower_of_the_old_definition_ends_after_a_backfill_by_the_new_and_says_to_start_it_again(
    place: Place, shop: Shop
) -> None:
    new = changed(place)
    shop.send(100)
    follower = make_follower(place)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(follower.run)
        wait_until(lambda: all_is_in(place))
        assert warnings(new.lake, new.spec)
        backfill_all(new)
        shop.send(100)
        with pytest.raises(StateError, match="Start this follower again"):
            ended.result(60)
    assert warnings(new.lake, new.spec) == ()
    follow_to_the_end(new)
    assert warnings(new.lake, new.spec) == ()
    assert_everything_counts_once(new)
    assert_online_is_offline(new)


def test_a_backfill_without_events_says_what_to_do(place: Place) -> None:
    with pytest.raises(StateError, match="run `perennial ingest"):
        backfill_all(place)


def test_files_that_were_deleted_before_the_commit_are_told(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an upkeep that takes what is older than an hour while a backfill takes longer."""
    shop.send(100)
    take_in(place)
    monkeypatch.setattr(backfilling, "LOOK_AGAIN_AFTER_S", 0.0)
    write = backfilling.write_files

    def taken(*arguments: Any) -> Any:
        files = write(*arguments)
        Path(files[0].file_path.removeprefix("file://")).unlink()
        return files

    monkeypatch.setattr(backfilling, "write_files", taken)
    with pytest.raises(StateError, match="lake expire"):
        backfill_all(place)
    monkeypatch.setattr(backfilling, "write_files", write)
    assert_everything_counts_once(place)
    assert len(CUSTOMERS) >= max(done.online_keys for done in backfill_all(place)) > 0


@pytest.mark.parametrize("conflicts", [0, 1])
def test_files_that_are_deleted_while_it_catches_up_are_told(
    conflicts: int, place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first try to commit, or in one after an ingest came first."""
    shop.send(100)
    take_in(place)
    monkeypatch.setattr(backfilling, "LOOK_AGAIN_AFTER_S", 0.0)
    catch_up, replace, tries = backfilling.new_features, backfilling.replace_rows, []

    def catching_up(lake: Any, view: Any, *arguments: Any) -> Any:
        yield from catch_up(lake, view, *arguments)
        if len(tries) == conflicts:
            expire(lake, view_table(view), 4, timedelta(0), datetime.now(UTC) + HOUR)

    def overtaken(*arguments: Any) -> Any:
        tries.append(1)
        shop.send(40)
        take_in(place)
        return replace(*arguments)

    monkeypatch.setattr(backfilling, "new_features", catching_up)
    monkeypatch.setattr(backfilling, "replace_rows", overtaken)
    with pytest.raises(StateError, match="lake expire"):
        backfill_all(place)
    assert len(tries) == conflicts
    assert_everything_counts_once(place)
