from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.errors import StateError, UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.bins import TOP_CATEGORIES
from validation.hours import HourlyProfiles, hour_of
from validation.profile import (
    Profile,
    ReferenceProfile,
    build_reference,
    profile,
    profile_by_hour,
)

FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))
POLICY = DriftPolicy(bins=4)
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)

REFERENCE = build_reference(
    pl.DataFrame({"x": [float(i) for i in range(1, 33)], "c": list("aaaabbcc") * 4, "score": [0.1, 0.2, 0.3, 0.4] * 8}),
    FEATURES,
    POLICY,
)

numbers = st.one_of(st.none(), st.floats(-5, 40), st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 2.0, 32.0]))
rows = st.lists(
    st.tuples(numbers, st.sampled_from([None, "a", "b", "c", "z", ""]), numbers, st.integers(0, 5 * 3600)), max_size=40
)


def frame_of(rows):
    columns = dict(zip(("x", "c", "score", "seconds"), zip(*rows, strict=True), strict=True)) if rows else {}
    schema = {"x": pl.Float64, "c": pl.String, "score": pl.Float64, "seconds": pl.Int64}
    frame = pl.DataFrame(columns, schema=schema, strict=False)
    return frame.with_columns((pl.lit(NOON) + pl.duration(seconds="seconds")).alias("t"))


def counts(reference, profile_, feature):
    """Counts by label, empty bins left out."""
    labels = next(b for b in reference.features if b.feature == feature).labels
    found = reference.of(profile_, feature)
    flat = [*found.present.tolist(), found.missing, found.absent, found.unreadable]
    return {label: n for label, n in zip(labels, flat, strict=True) if n}


def test_numeric_edges_are_quantiles_taken_from_the_values():
    # Four bins of 1..32: the least value with at least 0, 8, 16, 24, 32 values up to it, and a quarter of the outermost
    # bins' eight rows parted from them.
    assert REFERENCE.features[0].edges == (1.0, 2.0, 8.0, 16.0, 24.0, 30.0, 32.0)


def test_numeric_values_fall_into_the_bin_they_belong_to():
    x = [None, math.nan, -math.inf, 0.9, 1.0, 1.9, 2.0, 5.0, 8.0, 30.0, 32.0, 32.1, math.inf]
    frame = pl.DataFrame({"x": x, "c": ["a"] * 13, "score": [0.1] * 13}, strict=False)
    assert counts(REFERENCE, profile(frame, REFERENCE), "x") == {
        "missing": 2,
        "unreadable": 2,
        "below": 1,
        "[1.0, 2.0)": 2,
        "[2.0, 8.0)": 2,
        "[8.0, 16.0)": 1,
        "[30.0, 32.0]": 2,
        "above": 1,
    }


def test_a_rare_category_is_other_and_a_new_one_is_unseen():
    names = [f"k{i:02d}" for i in range(TOP_CATEGORIES + 5)]
    values = [n for i, n in enumerate(names) for _ in range(100 - i)]
    reference = build_reference(pl.DataFrame({"c": values}), FEATURES[1:], POLICY, extra=())
    assert counts(reference, reference.profile, "c")["other"] == sum(100 - i for i in range(20, 25))
    found = profile(pl.DataFrame({"c": ["k00", "k24", "new", None, "other", "unseen", "missing"]}), reference)
    assert counts(reference, found, "c") == {"=k00": 1, "other": 1, "unseen": 4, "missing": 1}


def test_categories_named_like_a_special_bin_are_counted_by_their_own_name():
    values = ["missing"] * 3 + ["other"] * 2 + ["unseen", ""]
    reference = build_reference(pl.DataFrame({"c": values}), FEATURES[1:], POLICY, extra=())
    assert counts(reference, reference.profile, "c") == {"=missing": 3, "=other": 2, "=unseen": 1, "=": 1}


def test_a_column_that_vanished_is_told_from_missing_values():
    found = profile(pl.DataFrame({"c": ["a", "b"], "score": [0.1, 0.2]}), REFERENCE)
    x = REFERENCE.of(found, "x")
    assert (x.absent, x.missing, x.void_rate) == (2, 0, 1.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series(["1.5", "junk", "NaN", None, "inf"]), {"[1.0, 2.0)": 1, "unreadable": 2, "missing": 2}),
        (
            pl.Series([1, 3, 31, None, -4]),
            {"[1.0, 2.0)": 1, "[2.0, 8.0)": 1, "[30.0, 32.0]": 1, "missing": 1, "below": 1},
        ),
        (pl.Series([True, False, None]), {"[1.0, 2.0)": 1, "below": 1, "missing": 1}),
        (pl.Series([NOON, None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([[1.0], None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([timedelta(hours=1), None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([object(), None], dtype=pl.Object), {"unreadable": 1, "missing": 1}),
        (pl.Series(["1", None], dtype=pl.Categorical), {"unreadable": 1, "missing": 1}),
        (pl.Series(["1.5", None]).cast(pl.Decimal(9, 2)), {"[1.0, 2.0)": 1, "missing": 1}),
        (pl.Series([None, None]), {"missing": 2}),
    ],
)
def test_a_numeric_column_of_another_type_is_counted_as_far_as_it_can_be_read(values, expected):
    frame = pl.DataFrame({"x": values}).with_columns(c=pl.lit("a"), score=pl.lit(0.1))
    assert counts(REFERENCE, profile(frame, REFERENCE), "x") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series(["a", "z", None], dtype=pl.Categorical), {"=a": 1, "unseen": 1, "missing": 1}),
        (pl.Series([1, None]), {"unseen": 1, "missing": 1}),
        (pl.Series([math.nan, 1.0]), {"unseen": 1, "missing": 1}),
        (pl.Series([["a"], None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([{"a": 1}, None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([b"a", None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([timedelta(hours=1), None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([object(), None], dtype=pl.Object), {"unreadable": 1, "missing": 1}),
        (pl.Series([time(1), None]), {"unseen": 1, "missing": 1}),
        (pl.Series([NOON, None]), {"unseen": 1, "missing": 1}),
        (pl.Series([None, None]), {"missing": 2}),
    ],
)
def test_a_categorical_column_of_another_type_is_counted_as_far_as_it_can_be_read(values, expected):
    frame = pl.DataFrame({"c": values}).with_columns(x=pl.lit(1.0), score=pl.lit(0.1))
    assert counts(REFERENCE, profile(frame, REFERENCE), "c") == expected


@settings(deadline=None)
@given(rows)
def test_every_row_is_counted_once_and_where_the_definition_says(rows):
    frame = frame_of(rows)
    found = profile(frame, REFERENCE)
    expected = {}
    edges = REFERENCE.features[0].edges
    for x, *_ in rows:
        if x is None or math.isnan(x):
            label = "missing"
        elif math.isinf(x):
            label = "unreadable"
        elif x < 1:
            label = "below"
        elif x > 32:
            label = "above"
        else:
            i = max(i for i in range(6) if edges[i] <= x)
            label = f"[{edges[i]}, {edges[i + 1]}{']' if i == 5 else ')'}"
        expected[label] = expected.get(label, 0) + 1
    assert counts(REFERENCE, found, "x") == expected
    assert REFERENCE.rows(found) == len(rows)
    categories = {}
    for _, c, *_ in rows:
        label = "missing" if c is None else f"={c}" if c in "abc" and c else "unseen"
        categories[label] = categories.get(label, 0) + 1
    assert counts(REFERENCE, found, "c") == categories


@settings(deadline=None)
@given(rows, rows)
def test_the_profile_of_two_frames_is_the_sum_of_theirs(a, b):
    whole, first, second = (profile(frame_of(r), REFERENCE).counts for r in (a + b, a, b))
    assert whole.tolist() == (first + second).tolist()


@settings(deadline=None)
@given(rows)
def test_each_hour_has_the_profile_of_its_rows(rows):
    frame = frame_of(rows)
    found = profile_by_hour(frame, REFERENCE, "t")
    hours = sorted({s // 3600 for *_, s in rows})
    assert found.hours.tolist() == [hour_of(NOON) + h for h in hours]
    for hour, counted in zip(hours, found.counts, strict=True):
        within = frame.filter(pl.col("seconds").is_between(3600 * hour, 3600 * (hour + 1), closed="left"))
        assert Profile(found.reference, counted) == profile(within, REFERENCE)


def test_hours_are_utc_whatever_the_zone_of_the_column_and_before_1970_as_well():
    india = timezone(timedelta(hours=5, minutes=30))
    stamps = [datetime(1969, 12, 31, 23, 59, tzinfo=UTC), datetime(2013, 3, 1, 17, 45, tzinfo=india)]
    frame = pl.DataFrame({"t": stamps}).with_columns(pl.col("t").dt.convert_time_zone("Asia/Kolkata"))
    assert profile_by_hour(frame, REFERENCE, "t").hours.tolist() == [-1, NOON.timestamp() // 3600]


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (pl.DataFrame({"x": [1.0]}), "None"),
        (pl.DataFrame({"t": ["2013-03-01"]}), "String"),
        (pl.DataFrame({"t": [datetime(2013, 3, 1)]}), "UTC"),  # noqa: DTZ001
        (pl.DataFrame({"t": [NOON, None]}), "1 of 2 rows"),
    ],
)
def test_rows_that_belong_to_no_hour_are_refused(frame, told):
    with pytest.raises(UsageError, match=told):
        profile_by_hour(frame, REFERENCE, "t")


def test_a_profile_is_read_with_no_other_bins_than_its_own():
    other = build_reference(pl.DataFrame({"x": [1.0, 9.0], "c": ["a", "b"], "score": [0.1, 0.2]}), FEATURES, POLICY)
    with pytest.raises(UsageError, match="current reference"):
        REFERENCE.of(other.profile, "x")


def test_a_profile_cannot_be_changed_not_even_through_the_array_given():
    given_ = REFERENCE.profile.counts.copy()
    found = Profile(REFERENCE.fingerprint, given_)
    given_[0] = 99
    assert found == REFERENCE.profile
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 1


def test_a_reference_survives_json_exactly():
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "x": np.where(rng.random(500) < 0.4, 0.0, rng.normal(size=500) / 3),
            "t": [NOON + timedelta(minutes=int(m)) for m in rng.integers(0, 10_000, 500)],
            "c": rng.choice(["JFK", "La Guardia", 'quo"te', "ü"], 500),
            "score": rng.random(500),
        }
    )
    reference = build_reference(frame, FEATURES, POLICY)
    timed = build_reference(frame, FEATURES, POLICY, timestamp_column="t")
    assert ReferenceProfile.from_json(timed.to_json()) == reference == timed
    back = ReferenceProfile.from_json(reference.to_json())
    assert back == reference
    assert back.fingerprint == reference.fingerprint
    assert profile(frame, back) == reference.profile


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        REFERENCE.to_json()[:-20],
        json.dumps(json.loads(REFERENCE.to_json()) | {"version": 99}),
        json.dumps(json.loads(REFERENCE.to_json()) | {"counts": [1, 2]}),
        json.dumps(json.loads(REFERENCE.to_json()) | {"features": []}),
        json.dumps(json.loads(REFERENCE.to_json()) | {"features": "abc"}),
        REFERENCE.to_json().replace("categorical", "ordinal"),
        REFERENCE.to_json().replace('"edges"', '"ends"'),
    ],
)
def test_a_reference_that_cannot_be_read_says_so(text):
    with pytest.raises(StateError, match="reference profile"):
        ReferenceProfile.from_json(text)


def test_the_order_of_the_rows_does_not_change_the_bins():
    frame = pl.DataFrame({"x": [3.0, 1.0, 2.0, 2.0], "c": ["b", "a", "a", "b"], "score": [0.4, 0.1, 0.2, 0.3]})
    assert build_reference(frame.reverse(), FEATURES, POLICY) == build_reference(frame, FEATURES, POLICY)


@pytest.mark.parametrize(
    ("x", "inner"),
    [
        ([5.0] * 9, 1),  # constant
        ([5.0], 1),  # one row
        ([None, math.nan], 0),  # nothing
        ([math.inf, -math.inf], 0),  # nothing finite
        ([], 0),
        ([np.finfo(float).max] * 3, 1),
        ([0.0] * 3, 1),
    ],
)
def test_odd_reference_columns_have_bins_and_count_every_row(x, inner):
    frame = pl.DataFrame({"x": x}, schema={"x": pl.Float64}, strict=False)
    reference = build_reference(frame, FEATURES[:1], POLICY, extra=())
    found = reference.of(reference.profile, "x")
    assert found.present.size == inner + 2
    assert found.rows == len(x)
    assert found.present[:inner].sum() == np.isfinite(np.array(x, dtype=float)).sum()
    shifted = reference.of(profile(pl.DataFrame({"x": [7.0, -7.0]}), reference), "x")
    assert shifted.rows == 2


def test_a_reference_without_the_score_says_what_is_missing():
    with pytest.raises(UsageError, match=r"\['score'\]"):
        build_reference(pl.DataFrame({"x": [1.0], "c": ["a"]}), FEATURES, POLICY)


def by_day(names):
    """A row a name, the days one after the other."""
    rows = [(name, NOON + timedelta(days=day)) for day, some in enumerate(names) for name in some]
    return pl.DataFrame(rows, schema={"c": pl.String, "t": pl.Datetime("us", "UTC")}, orient="row")


def test_a_rare_category_of_one_day_is_counted_as_unseen_where_it_occurs():
    # Twenty names of every day have bins of their own; `twice` is of two days, `once` of one, however often there.
    common = [f"k{i:02d}" for i in range(TOP_CATEGORIES)] * 3
    days = [[*common, "twice"], [*common, "once", "once"], [*common, "twice", None]]
    reference = build_reference(by_day(days), FEATURES[1:], POLICY, extra=(), timestamp_column="t")
    found = counts(reference, reference.profile, "c")
    assert {k: n for k, n in found.items() if not k.startswith("=")} == {"other": 2, "unseen": 2, "missing": 1}
    day = [Profile(reference.fingerprint, c) for c in reference.hours.counts]
    assert [counts(reference, d, "c").get("unseen", 0) for d in day] == [0, 2, 0]
    # The name is known all the same: where it comes again, it has been seen.
    assert counts(reference, profile(by_day([["once", "never"]]), reference), "c") == {"other": 1, "unseen": 1}


def test_a_name_on_both_sides_of_midnight_is_of_two_days():
    common = [f"k{i:02d}" for i in range(TOP_CATEGORIES)] * 3
    frame = by_day([common])
    midnight = datetime(2013, 3, 2, tzinfo=UTC)
    pair = pl.DataFrame({"c": ["late", "late"], "t": [midnight - timedelta(seconds=1), midnight]}, schema=frame.schema)
    reference = build_reference(pl.concat([frame, pair]), FEATURES[1:], POLICY, extra=(), timestamp_column="t")
    assert counts(reference, reference.profile, "c")["other"] == 2


@pytest.mark.parametrize("of", ["other bins", "other rows", "none", "other width"])
def test_hours_that_are_not_the_references_own_are_refused(of):
    frame = pl.DataFrame(
        {"x": [1.0, 2.0], "c": ["a", "b"], "score": [0.1, 0.2], "t": [NOON, NOON + timedelta(hours=3)]}
    )
    reference = build_reference(frame, FEATURES, POLICY, timestamp_column="t")
    own = reference.hours
    hours = {
        "other bins": replace(own, reference="another"),
        "other rows": replace(own, counts=own.counts + 1),
        "none": HourlyProfiles(own.reference, own.hours[:0], own.counts[:0]),
        "other width": replace(own, counts=own.counts[:, 1:]),
    }
    assert replace(reference, hours=own) == reference
    with pytest.raises(StateError, match="hours of a reference profile do not add up"):
        replace(reference, hours=hours[of])


def test_a_reference_of_no_rows_may_have_no_hours():
    frame = pl.DataFrame(schema={"x": pl.Float64, "c": pl.String, "score": pl.Float64, "t": pl.Datetime("us", "UTC")})
    reference = build_reference(frame, FEATURES, POLICY, timestamp_column="t")
    stored = HourlyProfiles.from_parquet(reference.hours.to_parquet(), reference.fingerprint)
    assert replace(reference, hours=stored).rows(reference.profile) == 0
