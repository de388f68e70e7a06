from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines.spec import DriftPolicy, Feature
from validation.drift import detect_drift
from validation.hours import DAY_H, hour_of
from validation.profile import build_reference, profile, profile_by_hour
from validation.verdict import Status
from validation.windows import LEAST_BLOCKS, Window, lay_out, windows_before

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MONDAY = datetime(2013, 3, 4, tzinfo=UTC)
"""The first hour after the references; New York puts its clocks forward six days later."""
FEATURES = (Feature(name="x", kind="numeric"),)
POLICY = DriftPolicy(min_rows=10)


def rows_between(since: datetime, until: datetime, *, every: str = "20m") -> pl.DataFrame:
    """Rows of one distribution, at even times."""
    times = pl.datetime_range(since, until, every, closed="left", eager=True, time_zone="UTC")
    rng = np.random.default_rng(int(since.timestamp()))
    return pl.DataFrame({"t": times, "x": rng.normal(size=len(times))})


def reference_of(frame: pl.DataFrame):
    return build_reference(frame, FEATURES, POLICY, extra=(), timestamp_column="t")


REFERENCE = reference_of(rows_between(MONDAY - 28 * DAY, MONDAY))
CURRENT = rows_between(MONDAY, MONDAY + 14 * DAY)
BY_HOUR = profile_by_hour(CURRENT, REFERENCE, "t")


def counts_between(frame: pl.DataFrame, since: datetime, until: datetime, reference=REFERENCE) -> list[int]:
    within = frame.filter(pl.col("t").is_between(since, until, closed="left"))
    return profile(within, reference).counts.tolist()


@pytest.mark.parametrize(
    "until", [MONDAY + 12 * DAY, MONDAY + 12 * DAY + 7 * HOUR, MONDAY + 12 * DAY + timedelta(minutes=59)]
)
def test_windows_end_with_the_last_whole_hour_the_newest_first(until):
    newest, before = windows_before(BY_HOUR, REFERENCE, until, POLICY)
    end = until.replace(minute=0)
    assert newest.counts.sum(axis=0).tolist() == counts_between(CURRENT, end - 3 * DAY, end)
    assert before.counts.sum(axis=0).tolist() == counts_between(CURRENT, end - 6 * DAY, end - 3 * DAY)
    assert newest.starts == tuple(hour_of(end) - h for h in (72, 48, 24))
    for window in (newest, before):
        assert window.block_h == DAY_H
        assert window.coverage.passed
        for start, counts in zip(window.starts, window.counts, strict=True):
            begin = datetime.fromtimestamp(3600 * start, UTC)
            assert counts.tolist() == counts_between(CURRENT, begin, begin + DAY)


def test_there_are_as_many_windows_as_must_show_a_move():
    for persistence in (1, 2, 4):
        policy = POLICY.model_copy(update={"persistence": persistence})
        assert len(windows_before(BY_HOUR, REFERENCE, MONDAY + 14 * DAY, policy)) == persistence


def test_a_part_of_a_day_is_one_block():
    policy = DriftPolicy(window_s=6 * 3600, persistence=3, min_rows=10)
    until = MONDAY + 2 * DAY
    for k, window in enumerate(windows_before(BY_HOUR, REFERENCE, until, policy)):
        assert (window.block_h, window.counts.shape[0]) == (6, 1)
        end = until - 6 * k * HOUR
        assert window.counts[0].tolist() == counts_between(CURRENT, end - 6 * HOUR, end)


@pytest.mark.parametrize("hour", range(24))
def test_the_reference_is_cut_in_step_with_the_windows_at_whatever_hour_they_end(hour):
    until = MONDAY + 12 * DAY + hour * HOUR
    found = lay_out(REFERENCE, windows_before(BY_HOUR, REFERENCE, until, POLICY), seasonal=False)
    assert found.why_rows is None
    frame = rows_between(MONDAY - 28 * DAY, MONDAY)
    first = MONDAY - 28 * DAY + hour * HOUR
    whole = [counts_between(frame, first + k * DAY, first + (k + 1) * DAY) for k in range(27)]
    # At most three hours of a day may lie outside the reference; with more, it is no day like the others.
    if hour <= 3:
        whole.append(counts_between(frame, first + 27 * DAY, MONDAY))
    if hour >= 21:
        whole.insert(0, counts_between(frame, MONDAY - 28 * DAY, first))
    assert found.reference.tolist() == whole
    # All days are alike, whatever their hour.
    assert set(found.layout.reference) == {hour} == {s for w in found.layout.windows for s in w}
    assert found.layout.unmatched.size == 0


def test_six_hours_are_like_the_same_six_hours_of_other_days():
    policy = DriftPolicy(window_s=6 * 3600, persistence=2, min_rows=10)
    windows = windows_before(BY_HOUR, REFERENCE, MONDAY + 2 * DAY + 13 * HOUR, policy)
    found = lay_out(REFERENCE, windows, seasonal=False)
    # 07-13 h and 01-07 h. At most one hour may lie outside the reference, as of its last 19-01 h: 28 days have each.
    assert [w.tolist() for w in found.layout.windows] == [[7], [1]]
    assert {int(s): int((found.layout.reference == s).sum()) for s in (1, 7, 13, 19)} == {1: 28, 7: 28, 13: 28, 19: 28}


def test_in_a_season_a_weekday_is_like_itself_only():
    until = MONDAY + 12 * DAY + 5 * HOUR
    found = lay_out(REFERENCE, windows_before(BY_HOUR, REFERENCE, until, POLICY), seasonal=True)
    seen = {}
    for stratum, starts in zip(found.layout.windows, found.starts, strict=True):
        for s, start in zip(stratum.tolist(), starts, strict=True):
            seen.setdefault(s, set()).add(datetime.fromtimestamp(3600 * start, UTC).weekday())
    # The windows end on a Saturday, 05 h: their six days begin on Sunday to Friday, each once.
    assert sorted(map(sorted, seen.values())) == [[0], [1], [2], [3], [4], [6]]
    assert all((found.layout.reference == s).sum() in (3, 4) for s in seen)
    assert len(set(found.layout.reference.tolist())) == 7


@pytest.mark.parametrize("name", ["America/New_York", "UTC"])
def test_a_day_has_24_hours_when_clocks_are_put_forward(name):
    until = MONDAY + 8 * DAY
    frame = CURRENT.with_columns(pl.col("t").dt.convert_time_zone(name))
    windows = windows_before(profile_by_hour(frame, REFERENCE, "t"), REFERENCE, until, POLICY)
    # Three rows an hour.
    assert [int(c.sum()) for w in windows for c in w.counts] == [72] * 6


@pytest.mark.parametrize(("length", "told"), [(13, "13 whole days, fewer than 14"), (1, "1 whole days, fewer than 14")])
def test_with_a_short_reference_rows_count_as_independent_and_the_sentence_says_so(length, told):
    short = reference_of(rows_between(MONDAY - length * DAY, MONDAY))
    windows = windows_before(profile_by_hour(CURRENT, short, "t"), short, MONDAY + 14 * DAY, POLICY)
    found = lay_out(short, windows, seasonal=False)
    assert found.why_rows == f"the reference has {told}"
    assert found.reference.tolist() == [list(short.counts)]
    assert [w.tolist() for w in found.windows] == [[w.counts.sum(axis=0).tolist()] for w in windows]
    verdict = detect_drift(short, windows, POLICY).verdict
    assert f"rows counted as independent, because the reference has {told}" in verdict.reason


def test_a_reference_of_two_weeks_is_long_enough():
    assert LEAST_BLOCKS == 14
    enough = reference_of(rows_between(MONDAY - 14 * DAY, MONDAY))
    windows = windows_before(profile_by_hour(CURRENT, enough, "t"), enough, MONDAY + 14 * DAY, POLICY)
    assert lay_out(enough, windows, seasonal=False).why_rows is None


def test_six_hours_of_a_short_reference_are_not_called_days():
    policy = DriftPolicy(window_s=6 * 3600, persistence=1, min_rows=10)
    short = reference_of(rows_between(MONDAY - 3 * DAY, MONDAY))
    windows = windows_before(profile_by_hour(CURRENT, short, "t"), short, MONDAY + 6 * HOUR, policy)
    why = "the reference has 12 whole stretches of 6 h, fewer than 14"
    assert lay_out(short, windows, seasonal=False).why_rows == why


def test_rows_without_a_time_are_told_as_such_even_beside_a_reference_with_times():
    found = lay_out(REFERENCE, [Window.of_rows(profile(CURRENT, REFERENCE))], seasonal=True)
    assert found.why_rows == "they have no time"
    assert found.starts == ((),)


def test_days_on_which_nothing_happens_are_not_shuffled():
    # An office: no rows on Saturdays and Sundays. A window of Friday to Sunday has one day, and is dealt one.
    office = (pl.col("t").dt.weekday() < 6,)
    reference = reference_of(rows_between(MONDAY - 28 * DAY, MONDAY).filter(office))
    current = profile_by_hour(CURRENT.filter(office), reference, "t")
    windows = windows_before(current, reference, MONDAY + 14 * DAY, POLICY)
    found = lay_out(reference, windows, seasonal=False)
    assert found.reference.shape[0] == found.layout.reference.size == 20
    assert [w.shape[0] for w in found.windows] == [w.size for w in found.layout.windows] == [1, 3]
    assert found.starts == ((hour_of(MONDAY + 11 * DAY),), tuple(hour_of(MONDAY + d * DAY) for d in (8, 9, 10)))


def test_a_window_on_a_weekday_that_the_reference_lacks_is_inconclusive_where_weekdays_differ():
    no_friday = pl.col("t").dt.weekday() != 5
    reference = reference_of(rows_between(MONDAY - 28 * DAY, MONDAY).filter(no_friday))
    # Ends on Saturday, 00 h: the newest window is Wednesday to Friday.
    windows = windows_before(profile_by_hour(CURRENT, reference, "t"), reference, MONDAY + 12 * DAY, POLICY)
    seasonal = POLICY.model_copy(update={"seasonal": True})
    found = detect_drift(reference, windows, seasonal).verdict
    assert found.status is Status.INCONCLUSIVE
    assert "33% of a window's rows are of weekdays that the reference does not have" in found.reason
    assert detect_drift(reference, windows, POLICY).verdict.status is Status.PASS


def test_a_window_that_reaches_back_before_the_stream_began_is_inconclusive():
    found = detect_drift(REFERENCE, windows_before(BY_HOUR, REFERENCE, MONDAY + 4 * DAY, POLICY), POLICY).verdict
    assert found.status is Status.INCONCLUSIVE
    assert "from 2013-02-26 00:00" not in found.reason
    assert "24 of the 72 hours that should have rows do" in found.reason
    assert "in the window from 2013-03-02 00:00 to 2013-03-05 00:00 UTC" in found.reason
