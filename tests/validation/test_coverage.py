from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pytest

from validation.coverage import judge_coverage
from validation.hours import DAY_H, HourlyProfiles, hour_of, moment_of
from validation.verdict import Status

UNTIL = hour_of(datetime(2013, 3, 11, tzinfo=UTC))
WEEK = 7 * DAY_H


def having(hours: Iterable[int]) -> HourlyProfiles:
    """Some rows in each of these hours."""
    found = np.array(sorted(hours), dtype=np.int64)
    return HourlyProfiles("any bins", found, np.full((found.size, 1), 9))


def flights(since: int, until: int) -> HourlyProfiles:
    """Rows in every hour, but for those from 04:00 to 10:00 UTC, in which no flight is scheduled."""
    return having(h for h in range(since, until) if not 4 <= h % DAY_H < 10)


REFERENCE = flights(UNTIL - 90 * DAY_H, UNTIL - 30 * DAY_H)


@pytest.mark.parametrize("days", [1, 2, 3, 7, 28])
def test_a_daily_run_over_whole_days_passes(days: int) -> None:
    since = UNTIL - days * DAY_H
    found = judge_coverage(flights(since, UNTIL), REFERENCE, since, UNTIL)
    assert found.passed
    assert found.measurements == {"covered_share": 1.0}
    assert f"{18 * days} of the {18 * days} hours that should have rows do" in found.reason


@pytest.mark.parametrize("hour", range(24))
def test_a_weeks_window_may_end_at_any_hour_of_the_night(hour: int) -> None:
    until = UNTIL + hour
    assert judge_coverage(flights(until - WEEK, until), REFERENCE, until - WEEK, until).passed


@pytest.mark.parametrize("reference", [None, REFERENCE, flights(0, 0)], ids=["none", "known", "empty"])
def test_a_stream_that_ended_on_the_first_day_is_inconclusive(reference: HourlyProfiles | None) -> None:
    since = UNTIL - WEEK
    found = judge_coverage(flights(since, since + DAY_H), reference, since, UNTIL)
    assert found.status is Status.INCONCLUSIVE
    assert "its newest row is of the hour 2013-03-04 23:00" in found.reason
    assert found.measurements["covered_share"] == pytest.approx(1 / 7)


def test_a_stream_that_began_on_the_last_day_is_inconclusive() -> None:
    current = flights(UNTIL - DAY_H, UNTIL)
    assert judge_coverage(current, REFERENCE, UNTIL - WEEK, UNTIL).status is Status.INCONCLUSIVE


def test_a_tenth_of_the_hours_that_should_have_rows_may_lack_and_no_more() -> None:
    # 10 days of 18 hours are 180: 162 of them are nine tenths.
    since = UNTIL - 10 * DAY_H
    hours = flights(since, UNTIL).hours
    for lacking, status in ((18, Status.PASS), (19, Status.INCONCLUSIVE)):
        for kept in (hours[lacking:], hours[:-lacking], np.delete(hours, range(50, 50 + lacking))):
            found = judge_coverage(having(kept), REFERENCE, since, UNTIL)
            assert found.status is status
            assert found.measurements["covered_share"] == pytest.approx((180 - lacking) / 180)


def test_rows_outside_the_window_do_not_fill_it() -> None:
    since = UNTIL - WEEK
    around = [*range(since - WEEK, since), *range(UNTIL, UNTIL + WEEK)]
    assert judge_coverage(having(around), REFERENCE, since, UNTIL).status is Status.INCONCLUSIVE
    assert judge_coverage(having([since, *around]), REFERENCE, since, UNTIL).status is Status.INCONCLUSIVE


def test_rows_in_hours_that_need_none_do_not_stand_for_those_that_do() -> None:
    since = UNTIL - WEEK
    night = having(h for h in range(since, UNTIL) if 4 <= h % DAY_H < 10)
    found = judge_coverage(night, REFERENCE, since, UNTIL)
    assert (found.status, found.measurements["covered_share"]) == (Status.INCONCLUSIVE, 0.0)


def test_where_no_hour_has_rows_every_day_each_day_should_have_some() -> None:
    # A shop of which the reference knows a row or two a day, at any hour.
    dice = np.random.default_rng(3)
    seldom = having({int(d * DAY_H + dice.integers(DAY_H)) for d in range(UNTIL // DAY_H - 60, UNTIL // DAY_H - 30)})
    since = UNTIL - WEEK
    daily = [since + d * DAY_H + int(dice.integers(DAY_H)) for d in range(7)]
    assert judge_coverage(having(daily), seldom, since, UNTIL).passed
    found = judge_coverage(having(daily[1:]), seldom, since, UNTIL)
    assert found.status is Status.INCONCLUSIVE
    assert "6 of the 7 days that should have rows do" in found.reason


def office(since: int, until: int) -> HourlyProfiles:
    """Rows from 08:00 to 18:00 UTC from Monday to Friday."""
    hours = [h for h in range(since, until) if 8 <= h % DAY_H < 18]
    return having(h for h in hours if moment_of(h).weekday() < 5)


@pytest.mark.parametrize("day", range(7))
def test_a_weekend_is_no_gap_in_what_happens_on_workdays(day: int) -> None:
    reference, until = office(UNTIL - 90 * DAY_H, UNTIL - 30 * DAY_H), UNTIL + day * DAY_H
    since = until - 3 * DAY_H
    whole = judge_coverage(office(since, until), reference, since, until)
    assert whole.status is Status.PASS
    # Without the last workday of the window it is no whole one.
    last = max(h for h in range(since, until) if moment_of(h).weekday() < 5) // DAY_H * DAY_H
    some = judge_coverage(office(since, last), reference, since, until)
    assert some.status is Status.INCONCLUSIVE


def test_a_window_of_which_nothing_is_due_is_inconclusive_even_with_rows() -> None:
    """2013-03-09 is a Saturday."""
    saturday = hour_of(datetime(2013, 3, 9, tzinfo=UTC))
    reference = office(UNTIL - 90 * DAY_H, UNTIL - 30 * DAY_H)
    found = judge_coverage(flights(saturday, UNTIL), reference, saturday, UNTIL)
    assert found.status is Status.INCONCLUSIVE
    assert "no rows are due" in found.reason


def test_no_rows_are_inconclusive() -> None:
    found = judge_coverage(having([]), REFERENCE, UNTIL - 1, UNTIL)
    assert (found.status, found.measurements["covered_share"]) == (Status.INCONCLUSIVE, 0.0)
    assert found.reason == "the window from 2013-03-10 23:00 to 2013-03-11 00:00 UTC has no rows"
