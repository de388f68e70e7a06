from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from toys_online import NAMES, SPEC, T0, VIEW, Row, frame, held, toys
from toys_online import settings as settings  # a fixture

from features import materialize as materializing
from features import newest
from features.built import read_built
from features.lake import Lake
from features.materialize import Materialized, materialize
from features.online_check import check_online
from features.replacement import replace_rows, write_files
from features.store import OnlineFeatures, OnlineWriter, view_table, write_online
from perennial.errors import UnreachableError
from perennial.settings import Settings
from pipelines.spec import FeatureView
from validation.verdict import Status

TABLE = view_table(VIEW)
TICK = timedelta(microseconds=1)


def lose_everything_online(settings: Settings, request: pytest.FixtureRequest) -> None:
    if settings.online_store_url:
        request.getfixturevalue("redis_server").client.flushall()
    for file in (settings.feast_dir / SPEC.name).glob("online.db*"):
        file.unlink()


def status(settings: Settings) -> Status:
    (found,) = check_online(SPEC, settings, Lake(settings, SPEC.name), again_after_s=0)
    return found.verdict.status


def brought(settings: Settings) -> Materialized:
    return materialize(OnlineWriter(SPEC, settings), Lake(settings, SPEC.name), VIEW)


def test_a_lost_online_store_holds_the_newest_row_of_every_key_again(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    lake = Lake(settings, SPEC.name)
    lake.append(TABLE, frame(("a", T0 + 2 * TICK, T0, 3.0, None), ("b", T0, T0 + TICK, 6.0, 7.0)))
    lake.append(TABLE, frame(("a", T0, T0 + 9 * TICK, 1.0, 1.5), ("b", T0, T0, 4.0, 5.0), ("c", T0, T0, None, 8.0)))
    expected = {"a": (T0 + 2 * TICK, T0, 3.0, None), "b": (T0, T0 + TICK, 6.0, 7.0), "c": (T0, T0, None, 8.0)}
    write_online(SPEC, settings, VIEW, frame(*((key, *rest) for key, rest in expected.items())))
    assert status(settings) is Status.PASS
    lose_everything_online(settings, request)
    assert status(settings) is Status.FAIL
    for _ in range(2):  # again changes nothing
        assert brought(settings) == Materialized(VIEW.name, 3, 3)
        assert held(OnlineWriter(SPEC, settings)) == expected
        assert status(settings) is Status.PASS


def test_what_is_newer_online_stays_and_what_is_missing_older_or_differs_is_mended(settings: Settings) -> None:
    newer = ("newer", T0 + TICK, T0, 2.0, 2.5)
    offline: list[Row] = [(key, T0, T0, 1.0, 1.5) for key in ("missing", "newer", "older", "value")]
    Lake(settings, SPEC.name).append(TABLE, frame(*offline))
    only_online = ("only online", T0, T0, 7.0, 7.5)
    older, value = ("older", T0 - TICK, T0, 9.0, 9.5), ("value", T0, T0, 9.0, 9.5)
    write_online(SPEC, settings, VIEW, frame(newer, only_online, older, value))
    assert brought(settings) == Materialized(VIEW.name, 4, 3)
    assert held(OnlineWriter(SPEC, settings)) == {
        "missing": (T0, T0, 1.0, 1.5),
        "newer": newer[1:],
        "older": (T0, T0, 1.0, 1.5),
        "only online": only_online[1:],
        "value": (T0, T0, 1.0, 1.5),
    }


def test_every_key_comes_back_in_any_number_of_files_slices_and_writes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices and writes are made so small that there are many of each; none is larger than it may be."""
    monkeypatch.setattr(newest, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(newest, "KEYS_AT_ONCE", 60)
    monkeypatch.setattr(materializing, "KEYS_A_WRITE", 7)
    rows: list[Row] = [(f"k{key}", T0 + n * TICK, T0, float(n), float(key)) for key in range(300) for n in range(4)]
    random.Random(3).shuffle(rows)
    for start in range(0, len(rows), 400):
        Lake(settings, SPEC.name).append(TABLE, frame(*rows[start : start + 400]))
    heights: list[int] = []

    class Counted(OnlineWriter):
        def write(self, *arguments: object) -> int:
            heights.append(arguments[1].height)
            return super().write(*arguments)

    assert materialize(Counted(SPEC, settings), Lake(settings, SPEC.name), VIEW) == Materialized(VIEW.name, 300, 300)
    assert max(heights) == 7
    expected = {f"k{key}": (T0 + 3 * TICK, T0, 3.0, float(key)) for key in range(300)}
    assert held(OnlineWriter(SPEC, settings)) == expected


def build_anew(lake: Lake, rows: pl.DataFrame) -> None:
    known = read_built(lake, SPEC, VIEW)
    anew = known.anew()
    replace_rows(lake, TABLE, write_files(lake, TABLE, anew.dated(rows)), {}, anew.words, known.still)


def test_after_a_rebuild_a_value_that_a_clock_dated_gives_way_and_one_of_the_stream_stays(settings: Settings) -> None:
    """As in a store that was taken over from Feast's, and of before rows were dated by their events."""
    lake, hour = Lake(settings, SPEC.name), timedelta(hours=1)
    lake.append(TABLE, frame(("same time", T0, T0 + TICK, 1.0, 1.0)))
    now = datetime.now(UTC)
    ahead = ("ahead", T0 + 2 * TICK, T0 + 3 * TICK + hour, 3.0, 3.0)
    write_online(
        SPEC,
        settings,
        VIEW,
        frame(
            ("same time", T0, now, 99.0, 99.0),
            ("later", T0 + hour, now, 99.0, 99.0),
            ("gone", T0, now, 99.0, 99.0),
            ahead,
        ),
    )
    newest = [(key, T0, T0 + TICK, 2.0, 2.5) for key in ("same time", "later", "ahead")]
    build_anew(lake, frame(*newest))
    assert brought(settings) == Materialized(VIEW.name, keys=3, written=2, removed=1)
    built = (T0, T0 + TICK + hour, 2.0, 2.5)
    assert held(OnlineWriter(SPEC, settings)) == {"same time": built, "later": built, "ahead": ahead[1:]}


def test_what_a_stream_wrote_after_another_rebuild_meanwhile_stays(settings: Settings) -> None:
    lake, hour = Lake(settings, SPEC.name), timedelta(hours=1)
    lake.append(TABLE, frame(("a", T0, T0 + TICK, 1.0, 1.0)))
    build_anew(lake, frame(("a", T0, T0 + TICK, 1.0, 1.0)))
    ahead = ("a", T0 + TICK, T0 + 2 * TICK + 2 * hour, 3.0, 3.0)

    class Overtaken(OnlineWriter):
        def keys(self, view: FeatureView) -> Iterator[list[str]]:
            build_anew(lake, frame(("a", T0, T0 + TICK, 2.0, 2.0)))
            self.write(view, frame(ahead))
            return super().keys(view)

    materialize(Overtaken(SPEC, settings), lake, VIEW)
    assert held(OnlineWriter(SPEC, settings)) == {"a": ahead[1:]}


def test_a_lake_without_rows_brings_nothing_online(settings: Settings) -> None:
    assert brought(settings) == Materialized(VIEW.name, 0, 0)
    Lake(settings, SPEC.name).append(TABLE, frame())
    assert brought(settings) == Materialized(VIEW.name, 0, 0)
    assert held(OnlineWriter(SPEC, settings)) == {}


def test_a_feature_that_the_lake_does_not_have_yet_goes_online_as_null(settings: Settings) -> None:
    old = toys(features=["shop_price_mean_1h"])
    rows = frame(("a", T0, T0, 1.0), features=["shop_price_mean_1h"])
    Lake(settings, SPEC.name).append(view_table(old.views[0]), rows)
    assert brought(settings) == Materialized(VIEW.name, 1, 1)
    assert held(OnlineWriter(SPEC, settings)) == {"a": (T0, T0, 1.0, None)}


def test_a_store_that_does_not_answer_is_told(tmp_path: Path, free_port: int) -> None:
    settings = Settings(home=tmp_path, online_store_url=f"redis://127.0.0.1:{free_port}")
    Lake(settings, SPEC.name).append(TABLE, frame(("a", T0, T0, 1.0, 1.0)))
    with pytest.raises(UnreachableError, match="PERENNIAL_ONLINE_STORE_URL"):
        brought(settings)


def test_a_service_that_reads_a_removed_file_reads_the_one_in_its_place(tmp_path: Path) -> None:
    """It goes on with what it has until there is a new one."""
    settings = Settings(home=tmp_path)
    lake = Lake(settings, SPEC.name)
    lake.append(TABLE, frame(("a", T0, T0, 1.0, 1.5)))
    brought(settings)
    served, reader = OnlineFeatures(SPEC, settings), OnlineWriter(SPEC, settings)
    asked = pl.DataFrame({"toy": ["t"], "event_timestamp": [T0 + timedelta(hours=1)], "shop": ["a"], "price": [5.0]})
    assert served.frame(asked).select(NAMES).rows() == [(1.0, 1.5)]
    assert held(reader) == {"a": (T0, T0, 1.0, 1.5)}
    for file in (settings.feast_dir / SPEC.name).glob("online.db*"):
        file.unlink()
    assert served.frame(asked).select(NAMES).rows() == [(1.0, 1.5)]
    lake.append(TABLE, frame(("a", T0 + TICK, T0, 2.0, 2.5)))
    assert brought(settings) == Materialized(VIEW.name, 1, 1)
    assert served.frame(asked).select(NAMES).rows() == [(2.0, 2.5)]
    assert held(reader) == {"a": (T0 + TICK, T0, 2.0, 2.5)}
