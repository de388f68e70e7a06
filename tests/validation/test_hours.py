from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.errors import StateError, UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.hours import DAY_H, HourlyProfiles, hour_of, hours_of, matrix, moment_of
from validation.profile import build_reference, profile, profile_by_hour

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))
REFERENCE = build_reference(
    pl.DataFrame({"x": [float(i) for i in range(40)], "c": list("aaab") * 10}), FEATURES, DriftPolicy(), extra=()
)

rows = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(-5, 50)), st.sampled_from([None, "a", "b", "z"]), st.integers(0, 50 * 3600)
    ),
    max_size=40,
)


def frame_of(rows):
    schema = {"x": pl.Float64, "c": pl.String, "s": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns((pl.lit(NOON) + pl.duration(seconds="s")).alias("t"))


def by_hour(rows):
    return profile_by_hour(frame_of(rows), REFERENCE, "t")


@settings(deadline=None)
@given(rows, st.integers(-2, 60), st.integers(0, 60))
def test_a_stretch_is_the_sum_of_its_rows(rows, start, length):
    since = hour_of(NOON) + start
    seconds = pl.col("s").is_between(3600 * start, 3600 * (start + length), closed="left")
    within = profile(frame_of(rows).filter(seconds), REFERENCE)
    assert by_hour(rows).between(since, since + length).tolist() == within.counts.tolist()


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False), st.integers(1, 5))
def test_however_the_rows_are_dealt_to_frames_the_sums_are_the_same(rows, dice, parts):
    whole = by_hour(rows)
    dealt = [[] for _ in range(parts)]
    for row in rows:
        dice.choice(dealt).append(row)
    since, until = hour_of(NOON), hour_of(NOON) + 60
    sums = [by_hour(part).between(since, until) for part in dealt]
    assert sum(sums).tolist() == sum(reversed(sums)).tolist() == whole.between(since, until).tolist()
    half = until - 30
    assert (whole.between(since, half) + whole.between(half, until)).tolist() == whole.between(since, until).tolist()


@settings(deadline=None)
@given(rows, st.lists(st.integers(-30, 60), max_size=6), st.integers(1, 30))
def test_blocks_are_stretches_side_by_side(rows, starts, length):
    found = by_hour(rows)
    starts = [hour_of(NOON) + s for s in starts]
    expected = [found.between(s, s + length).tolist() for s in starts]
    assert found.blocks(starts, length).tolist() == expected
    assert found.blocks(starts, length).shape == (len(starts), len(REFERENCE.counts))


@settings(max_examples=50, deadline=None)
@given(rows)
def test_hours_survive_a_file_exactly(rows):
    written = by_hour(rows)
    found = HourlyProfiles.from_parquet(written.to_parquet(), written.reference)
    assert found.reference == written.reference
    assert found.hours.tolist() == written.hours.tolist()
    assert found.counts.tolist() == written.counts.tolist()


def test_a_file_of_which_a_byte_has_changed_is_refused_or_reads_the_same():
    dice = np.random.default_rng(5)
    written = HourlyProfiles("bins", np.arange(48) + 377_000, dice.integers(0, 30, (48, 20)))
    file = written.to_parquet()
    refused = 0
    for at in range(0, len(file), 3):
        for damaged in (file[:at], file[:at] + bytes([file[at] ^ 0x10]) + file[at + 1 :], file[:at] + file[at + 1 :]):
            try:
                found = HourlyProfiles.from_parquet(damaged, "bins")
            except StateError:
                refused += 1
                continue
            assert found.hours.tolist() == written.hours.tolist()
            assert found.counts.tolist() == written.counts.tolist()
    assert refused > len(file) * 2 // 3


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"hour": [1, 2]}),
        pl.DataFrame({"counts": [[1], [2]]}),
        pl.DataFrame({"hour": [1, 2], "counts": [[1], [2, 3]]}),
        pl.DataFrame({"hour": [1, 2], "counts": [1, 2]}),
        pl.DataFrame({"hour": ["1", "2"], "counts": [[1], [2]]}),
        pl.DataFrame({"hour": [1, 2], "counts": [[1], [2]]}),
    ],
    ids=["no counts", "no hours", "uneven", "not lists", "text", "no check sum"],
)
def test_a_file_of_something_else_is_refused(frame):
    file = io.BytesIO()
    frame.write_parquet(file)
    with pytest.raises(StateError, match="retrain, or release a model that has them"):
        HourlyProfiles.from_parquet(file.getvalue(), "bins")


def test_lists_of_one_length_are_an_array_and_others_are_refused():
    assert matrix(pl.Series([[1, 2, 3], [4, 5, 6]])).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert matrix(pl.Series([], dtype=pl.List(pl.Int32))).shape == (0, 0)
    with pytest.raises(ValueError, match="different lengths"):
        matrix(pl.Series([[1, 2], [3]]))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_an_hour_is_one_of_utc_whatever_clocks_do(zone):
    # New York's clocks were put forward on 10 March 2013 and back on 3 November: a day there has 23 and 25 hours, and
    # one hour of November comes twice. In UTC there is neither.
    for first in (datetime(2013, 3, 9, 20, tzinfo=UTC), datetime(2013, 11, 2, 20, tzinfo=UTC)):
        times = [first + timedelta(minutes=30 * i) for i in range(72)]
        frame = pl.DataFrame({"t": times}).with_columns(pl.col("t").dt.convert_time_zone(zone))
        start = int(first.timestamp()) // 3600
        assert hours_of(frame, "t").tolist() == [start + i // 2 for i in range(72)]
        assert [hour_of(t.astimezone(ZoneInfo(zone))) for t in times] == [start + i // 2 for i in range(72)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_the_last_instant_of_an_hour_belongs_to_it_before_1970_as_well(unit):
    last = [
        datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(2013, 3, 1, 12, 59, 59, 999_000, tzinfo=UTC),
    ]
    frame = pl.DataFrame({"t": pl.Series(last).dt.cast_time_unit(unit)})
    assert hours_of(frame, "t").tolist() == [-1, hour_of(NOON)]
    assert [hour_of(t) for t in last] == [-1, hour_of(NOON)]


@settings(deadline=None)
@given(st.datetimes(datetime(1960, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001
def test_a_moment_lies_in_the_hour_that_begins_at_or_before_it(at):
    at = at.replace(tzinfo=UTC)
    begin = moment_of(hour_of(at))
    assert begin == at.replace(minute=0, second=0, microsecond=0)
    assert moment_of(hour_of(at) + DAY_H) - begin == timedelta(days=1)


def test_times_without_a_zone_are_refused():
    with pytest.raises(UsageError, match="expected a UTC timestamp"):
        hours_of(pl.DataFrame({"t": [datetime(2013, 3, 1)]}), "t")  # noqa: DTZ001
