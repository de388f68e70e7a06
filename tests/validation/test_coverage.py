from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from validation.coverage import judge_coverage
from validation.verdict import Status

UNTIL = datetime(2013, 3, 11, tzinfo=UTC)
HOUR = timedelta(hours=1)


def flights(since: datetime, until: datetime) -> pl.Series:
    """A row every ten minutes, but for the hours from 04:00 to 10:00 UTC, in which no flight is scheduled."""
    times = pl.datetime_range(since, until, "10m", closed="left", eager=True, time_zone="UTC")
    return times.filter((times.dt.hour() < 4) | (times.dt.hour() >= 10))


@pytest.mark.parametrize("days", [2, 3, 7, 28])
def test_a_daily_run_over_whole_days_passes(days: int) -> None:
    since = UNTIL - days * 24 * HOUR
    found = judge_coverage(flights(since, UNTIL), since, UNTIL)
    assert found.passed
    assert found.measurements == {"covered_s": days * 86_400, "silent_s": 600, "window_s": days * 86_400}


@pytest.mark.parametrize("hour", range(24))
def test_a_weeks_window_may_end_at_any_hour_of_the_night(hour: int) -> None:
    until = UNTIL + hour * HOUR
    since = until - 7 * 24 * HOUR
    assert judge_coverage(flights(since, until), since, until).passed


def test_a_stream_that_ended_on_the_first_day_is_inconclusive() -> None:
    since = UNTIL - 7 * 24 * HOUR
    times = pl.Series([since + timedelta(minutes=2 * i) for i in range(600)])
    found = judge_coverage(times, since, UNTIL)
    assert found.status is Status.INCONCLUSIVE
    assert found.reason == "the newest row is 6.2 d old, in a window of 7.0 d"


def test_a_tenth_may_lack_at_either_end_and_no_more() -> None:
    since, tenth, second = UNTIL - 10 * HOUR, HOUR, timedelta(seconds=1)
    for first, last, status in (
        (since + tenth, UNTIL - tenth, Status.PASS),
        (since + tenth + second, UNTIL - tenth, Status.INCONCLUSIVE),
        (since + tenth, UNTIL - tenth - second, Status.INCONCLUSIVE),
    ):
        assert judge_coverage(pl.Series([last, first]), since, UNTIL).status is status


def test_no_rows_are_inconclusive() -> None:
    none = pl.Series([], dtype=pl.Datetime("us", "UTC"))
    assert judge_coverage(none, UNTIL - HOUR, UNTIL).status is Status.INCONCLUSIVE
