from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.errors import StateError, UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.bins import TOP_CATEGORIES, bins_of
from validation.profile import (
    Profile,
    ReferenceProfile,
    build_reference,
    from_rows,
    merge,
    merge_all,
    profile,
    profile_by_hour,
    to_rows,
)

FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))
POLICY = DriftPolicy(bins=4)
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)

REFERENCE = build_reference(
    pl.DataFrame(
        {"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "c": list("aaaabbcc"), "score": [0.1, 0.2, 0.3, 0.4] * 2}
    ),
    FEATURES,
    POLICY,
)

numbers = st.one_of(st.none(), st.floats(-5, 15), st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 8.0]))
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
    # Four bins of 1..8: the least value with at least 0, 2, 4, 6, 8 values up to it.
    assert REFERENCE.features[0].edges == (1.0, 2.0, 4.0, 6.0, 8.0)


def test_numeric_values_fall_into_the_bin_they_belong_to():
    x = [None, math.nan, -math.inf, 0.9, 1.0, 1.9, 2.0, 5.0, 6.0, 8.0, 8.1, math.inf]
    frame = pl.DataFrame({"x": x, "c": ["a"] * 12, "score": [0.1] * 12}, strict=False)
    assert counts(REFERENCE, profile(frame, REFERENCE), "x") == {
        "missing": 2,
        "below": 2,
        "[1.0, 2.0)": 2,
        "[2.0, 4.0)": 1,
        "[4.0, 6.0)": 1,
        "[6.0, 8.0]": 2,
        "above": 2,
    }


def test_a_value_that_holds_a_quantile_by_itself_has_its_own_bin():
    bins = bins_of(pl.Series([0.0] * 70 + [float(i) for i in range(1, 31)]), "delay", "numeric", 10)
    assert bins.labels[0] == "=0.0"
    found = bins.assign(pl.DataFrame({"delay": [0.0, 0.5]}))
    assert found[0] != found[1]


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
        (pl.Series(["1.5", "junk", "NaN", None, "inf"]), {"[1.0, 2.0)": 1, "unreadable": 1, "missing": 2, "above": 1}),
        (pl.Series([1, 3, 8, None, -4]), {"[1.0, 2.0)": 1, "[2.0, 4.0)": 1, "[6.0, 8.0]": 1, "missing": 1, "below": 1}),
        (pl.Series([True, False, None]), {"[1.0, 2.0)": 1, "below": 1, "missing": 1}),
        (pl.Series([NOON, None]), {"unreadable": 1, "missing": 1}),
        (pl.Series([[1.0], None]), {"unreadable": 1, "missing": 1}),
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
        (pl.Series([None, None]), {"missing": 2}),
    ],
)
def test_a_categorical_column_of_another_type_is_counted_as_far_as_it_can_be_read(values, expected):
    frame = pl.DataFrame({"c": values}).with_columns(x=pl.lit(1.0), score=pl.lit(0.1))
    assert counts(REFERENCE, profile(frame, REFERENCE), "c") == expected


@given(rows)
def test_every_row_is_counted_once_and_where_the_definition_says(rows):
    frame = frame_of(rows)
    found = profile(frame, REFERENCE)
    expected = {}
    edges = REFERENCE.features[0].edges
    for x, *_ in rows:
        if x is None or math.isnan(x):
            label = "missing"
        elif x < 1:
            label = "below"
        elif x > 8:
            label = "above"
        else:
            i = max(i for i in range(4) if edges[i] <= x)
            label = f"[{edges[i]}, {edges[i + 1]}{']' if i == 3 else ')'}"
        expected[label] = expected.get(label, 0) + 1
    assert counts(REFERENCE, found, "x") == expected
    assert REFERENCE.rows(found) == len(rows)
    categories = {}
    for _, c, *_ in rows:
        label = "missing" if c is None else f"={c}" if c in "abc" and c else "unseen"
        categories[label] = categories.get(label, 0) + 1
    assert counts(REFERENCE, found, "c") == categories


@given(rows, rows, rows)
def test_profiles_add_up_whatever_the_order_and_grouping(a, b, c):
    pa, pb, pc = (profile(frame_of(r), REFERENCE) for r in (a, b, c))
    assert merge(pa, pb) == merge(pb, pa)
    assert merge(merge(pa, pb), pc) == merge(pa, merge(pb, pc)) == merge_all([pc, pa, pb], REFERENCE)
    assert merge(pa, REFERENCE.empty()) == pa
    assert merge_all([], REFERENCE) == REFERENCE.empty() == profile(frame_of([]), REFERENCE)


@given(rows, rows)
def test_the_profile_of_two_frames_is_the_sum_of_theirs(a, b):
    assert merge(profile(frame_of(a), REFERENCE), profile(frame_of(b), REFERENCE)) == profile(
        frame_of(a + b), REFERENCE
    )


@given(rows)
def test_each_hour_has_the_profile_of_its_rows(rows):
    frame = frame_of(rows)
    found = profile_by_hour(frame, REFERENCE, "t")
    expected = {}
    for hour in sorted({3600 * (s // 3600) for *_, s in rows}):
        within = frame.filter(pl.col("seconds").is_between(hour, hour + 3600, closed="left"))
        expected[NOON + timedelta(seconds=hour)] = profile(within, REFERENCE)
    assert found == expected
    assert list(found) == sorted(found)


def test_hours_are_utc_whatever_the_zone_of_the_column_and_before_1970_as_well():
    india = timezone(timedelta(hours=5, minutes=30))
    stamps = [datetime(1969, 12, 31, 23, 59, tzinfo=UTC), datetime(2013, 3, 1, 17, 45, tzinfo=india)]
    frame = pl.DataFrame({"t": stamps}).with_columns(pl.col("t").dt.convert_time_zone("Asia/Kolkata"))
    assert list(profile_by_hour(frame, REFERENCE, "t")) == [datetime(1969, 12, 31, 23, tzinfo=UTC), NOON]


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


def test_profiles_on_different_bins_never_add_up():
    other = build_reference(pl.DataFrame({"x": [1.0, 9.0], "c": ["a", "b"], "score": [0.1, 0.2]}), FEATURES, POLICY)
    with pytest.raises(UsageError, match="current reference"):
        merge(REFERENCE.profile, other.profile)
    with pytest.raises(UsageError, match="current reference"):
        merge_all([other.profile], REFERENCE)
    with pytest.raises(UsageError, match="current reference"):
        REFERENCE.of(other.profile, "x")


def test_a_profile_cannot_be_changed_not_even_through_the_array_given():
    given_ = REFERENCE.profile.counts.copy()
    found = Profile(REFERENCE.fingerprint, given_)
    given_[0] = 99
    assert found == REFERENCE.profile
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 1


@settings(max_examples=50)
@given(rows, rows)
def test_windows_stored_as_rows_come_back_as_their_sum(a, b):
    pa, pb = profile(frame_of(a), REFERENCE), profile(frame_of(b), REFERENCE)
    stored = pl.concat([to_rows(pa, NOON, REFERENCE), to_rows(pb, NOON + timedelta(hours=1), REFERENCE)])
    assert from_rows(stored.sample(fraction=1.0, shuffle=True, seed=1), REFERENCE) == merge(pa, pb)
    assert from_rows(stored.filter(pl.col("window_start") == NOON), REFERENCE) == pa
    assert stored["count"].min() is None or stored["count"].min() > 0


def test_rows_have_one_schema_even_when_there_are_none():
    schema = {
        "window_start": pl.Datetime("us", "UTC"),
        "reference": pl.String,
        "feature": pl.String,
        "bin": pl.String,
        "count": pl.Int64,
    }
    assert to_rows(REFERENCE.profile, NOON, REFERENCE).schema == schema
    assert to_rows(REFERENCE.empty(), NOON, REFERENCE).schema == schema


def test_rows_of_another_reference_are_left_aside():
    other = to_rows(REFERENCE.profile, NOON, REFERENCE).with_columns(reference=pl.lit("of an older champion"))
    assert from_rows(other, REFERENCE) == REFERENCE.empty()


def test_rows_written_by_half_are_refused():
    stored = to_rows(REFERENCE.profile, NOON, REFERENCE)
    with pytest.raises(StateError, match="by half"):
        from_rows(stored.filter(pl.col("feature") != "x"), REFERENCE)
    with pytest.raises(StateError, match="lacks"):
        from_rows(stored.with_columns(bin=pl.lit("no such bin")), REFERENCE)


def test_a_reference_survives_json_exactly():
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "x": np.where(rng.random(500) < 0.4, 0.0, rng.normal(size=500) / 3),
            "c": rng.choice(["JFK", "La Guardia", 'quo"te', "ü"], 500),
            "score": rng.random(500),
        }
    )
    reference = build_reference(frame, FEATURES, POLICY)
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
