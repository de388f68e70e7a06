"""Hourly profiles in a real lake: every prediction is counted once, whenever it came and whoever looked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.lake import Lake
from perennial.settings import Settings
from pipelines.spec import DriftPolicy, Feature
from validation.hours import HourlyProfiles
from validation.profile import ReferenceProfile, build_reference, profile_by_hour
from validation.profile_log import PROFILES, profiles_between

T0 = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))


def rows(hours: list[int], seed: int = 0) -> pl.DataFrame:
    """A prediction in each of some hours."""
    dice = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "event_timestamp": [
                T0 + timedelta(hours=h, minutes=int(m))
                for h, m in zip(hours, dice.integers(0, 60, len(hours)), strict=True)
            ],
            "x": dice.normal(size=len(hours)),
            "c": dice.choice(["a", "b", "new"], len(hours)),
            "score": dice.random(len(hours)),
        },
        schema_overrides={
            "event_timestamp": pl.Datetime("us", "UTC"),
            "x": pl.Float64,
            "c": pl.String,
            "score": pl.Float64,
        },
    )


REFERENCE = build_reference(rows(list(range(200)), 1), FEATURES, DriftPolicy(), timestamp_column="event_timestamp")


class Reader:
    """Reads the predictions, and remembers what it was asked for."""

    def __init__(self, lake: Lake) -> None:
        self.lake, self.asked = lake, list[tuple[datetime, datetime]]()

    def __call__(self, since: datetime, until: datetime) -> pl.DataFrame:
        self.asked.append((since, until))
        return self.lake.read("predictions", since, until)


def look(
    lake: Lake, until: datetime = T0 + 3 * DAY, reference: ReferenceProfile = REFERENCE
) -> tuple[HourlyProfiles, Reader]:
    reader = Reader(lake)
    return profiles_between(lake, reference, "predictions", T0, until, reader, until), reader


def same(found: HourlyProfiles, frame: pl.DataFrame, reference: ReferenceProfile = REFERENCE) -> bool:
    """Whether hours and counts are those of the frame, hours without rows left out."""
    expected = profile_by_hour(frame, reference, "event_timestamp")
    used = found.counts.sum(axis=1) > 0
    return np.array_equal(found.hours[used], expected.hours) and np.array_equal(found.counts[used], expected.counts)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


def test_without_predictions_there_are_no_hours(lake: Lake) -> None:
    found, reader = look(lake)
    assert found.hours.size == 0
    assert found.counts.shape == (0, len(REFERENCE.counts))
    assert not reader.asked


def test_what_was_counted_is_not_read_again_and_what_came_late_is(lake: Lake) -> None:
    early = rows([1, 1, 2, 30, 50])
    lake.append("predictions", early)
    found, reader = look(lake)
    assert same(found, early)
    assert [(b - a) <= DAY for a, b in reader.asked] == [True, True, True]
    again, reader = look(lake)
    assert (same(again, early), reader.asked) == (True, [])
    late = rows([2, 51], 5)
    lake.append("predictions", late)
    found, reader = look(lake)
    assert same(found, pl.concat([early, late]))
    hour = timedelta(hours=1)
    assert reader.asked == [(T0 + 2 * hour, T0 + 3 * hour), (T0 + 51 * hour, T0 + 52 * hour)]


def test_hours_outside_the_stretch_are_left_alone(lake: Lake) -> None:
    lake.append("predictions", rows([-1, 0, 23, 24]))
    found, reader = look(lake, T0 + DAY)
    assert same(found, rows([-1, 0, 23, 24]).filter(pl.col("event_timestamp").is_between(T0, T0 + DAY, closed="left")))
    assert reader.asked == [(T0, T0 + DAY)]


def test_each_champion_has_hours_of_its_own(lake: Lake) -> None:
    made = rows(list(range(20)))
    lake.append("predictions", made)
    other = build_reference(rows(list(range(90)), 9), FEATURES, DriftPolicy(bins=4), timestamp_column="event_timestamp")
    assert same(look(lake)[0], made)
    assert same(look(lake, reference=other)[0], made, other)
    assert same(look(lake)[0], made)


def test_rows_that_the_reader_leaves_out_are_not_asked_for_for_ever(lake: Lake) -> None:
    lake.append("predictions", rows([5, 5]))
    first_only = lambda since, until: lake.read("predictions", since, until).head(1)  # noqa: E731
    none = lambda since, until: lake.read("predictions", since, until).clear()  # noqa: E731
    profiles_between(lake, REFERENCE, "predictions", T0, T0 + DAY, first_only, T0)
    found, reader = look(lake, T0 + DAY)
    assert not reader.asked
    assert found.counts.sum() == len(REFERENCE.features)
    lake.append("predictions", rows([7]))
    profiles_between(lake, REFERENCE, "predictions", T0, T0 + DAY, none, T0)
    assert look(lake, T0 + DAY)[1].asked == []


def test_two_that_count_at_once_count_nothing_twice(lake: Lake) -> None:
    made = rows([3, 4, 4])
    lake.append("predictions", made)

    def overtaken(since: datetime, until: datetime) -> pl.DataFrame:
        look(lake)
        return lake.read("predictions", since, until)

    assert same(profiles_between(lake, REFERENCE, "predictions", T0, T0 + DAY, overtaken, T0), made)
    assert same(look(lake)[0], made)


def test_two_that_begin_at_the_same_moment_both_have_every_hour(lake: Lake, tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    everything = rows([])

    def work(_: int) -> HourlyProfiles:
        own = Lake(Settings(home=tmp_path), "shop")
        barrier.wait(20)
        return look(own)[0]

    with ThreadPoolExecutor(2) as pool:
        for seed in range(3):
            batch = rows([1, 25, 49, 49], seed)
            everything = pl.concat([everything, batch])
            lake.append("predictions", batch)
            assert all(same(found, everything) for found in pool.map(work, range(2)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 71), max_size=12), min_size=1, max_size=4))
def test_whenever_predictions_come_the_sum_is_that_of_all(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    lake = Lake(Settings(home=tmp_path_factory.mktemp("home")), "shop")
    everything = rows([])
    for number, hours in enumerate(batches):
        batch = rows(hours, number)
        everything = pl.concat([everything, batch])
        lake.append("predictions", batch)
        assert same(look(lake)[0], everything)


def test_a_count_that_was_killed_after_any_day_goes_on(lake: Lake, tmp_path: Path) -> None:
    made = rows([1, 25, 49, 49])
    lake.append("predictions", made)
    killed = """
        import os, signal, sys
        from pathlib import Path
        import tests.validation.test_profile_log as t
        from features.lake import Lake
        from perennial.settings import Settings
        lake, left = Lake(Settings(home=Path(sys.argv[1])), "shop"), int(sys.argv[2])
        def read(since, until):
            global left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return lake.read("predictions", since, until)
        t.profiles_between(lake, t.REFERENCE, "predictions", t.T0, t.T0 + 3 * t.DAY, read, t.T0)
    """
    for days in (0, 1):
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(killed), str(tmp_path), str(days)],
            cwd=Path(__file__).parents[2],
            check=False,
        )
        assert ended.returncode == -9
        assert lake.rows(PROFILES) == days if days else not lake.exists(PROFILES)
    found, reader = look(lake)
    assert same(found, made)
    assert len(reader.asked) == 2
