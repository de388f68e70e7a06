from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.errors import UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.drift import detect_drift
from validation.profile import build_reference, profile_by_hour
from validation.verdict import Status
from validation.windows import windows_before

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))
POLICY = DriftPolicy()
ONE = POLICY.model_copy(update={"persistence": 1})
DAY = timedelta(days=1)
UNTIL = datetime(2013, 5, 1, tzinfo=UTC)
START = UNTIL - 6 * DAY
"""Of the two windows of three days, the older one first; the reference are the 56 days before them."""


def stream(seed, days, *, since=START, rows=834, weather=0.0):
    """Days of independent rows, at even times; with `weather`, each day's x has a level of its own."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), rows)
    at = np.tile(np.arange(rows) / rows, days)
    return pl.DataFrame(
        {
            "t": pl.Series(since.timestamp() * 1e6 + (day + at) * 86_400e6)
            .cast(pl.Int64)
            .cast(pl.Datetime("us", "UTC")),
            "x": rng.normal(size=day.size) + weather * rng.normal(size=days)[day],
            "c": rng.choice(["JFK", "LGA", "EWR"], day.size, p=[0.5, 0.3, 0.2]),
            "score": rng.random(day.size),
        }
    )


def reference_of(frame, policy=POLICY):
    return build_reference(frame, FEATURES, policy, timestamp_column="t")


REFERENCE = reference_of(stream(1, 56, since=START - 56 * DAY, rows=200))


def judged(current, policy=POLICY, reference=REFERENCE, until=UNTIL, importance=None):
    windows = windows_before(profile_by_hour(current, reference, "t"), reference, until, policy)
    return detect_drift(reference, windows, policy, importance)


def by_name(found):
    return {f.feature: f for f in found.features}


def days(first, end):
    """Rows of days [first, end) of the two windows, which may be parts of days."""
    return pl.col("t").is_between(START + first * DAY, START + end * DAY, closed="left")


def within(condition, column, then):
    return pl.when(condition).then(then).otherwise(pl.col(column)).alias(column)


SOME = pl.int_range(pl.len()) % 20 == 7
"""Each twentieth row: five percent."""

PLANTED = {
    "mean": ("x", "values", pl.col("x") + 0.4),
    "scale": ("x", "values", pl.col("x") * 1.35),
    "missing": ("x", "missing", pl.when(~SOME).then("x")),
    "unseen": ("c", "unseen", pl.when(SOME).then(pl.lit("SWF")).otherwise("c")),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("seed", [2, 3])
def test_a_small_move_of_independent_rows_is_named_and_nothing_else_is(planted, seed):
    column, kind, change = PLANTED[planted]
    found = judged(stream(seed, 6).with_columns(change.alias(column)))
    assert [f.feature for f in found.watched + found.drifted] == [column]
    assert [m.kind for m in by_name(found)[column].moves if m.level] == [kind]
    assert judged(stream(seed, 6)).verdict.reason.startswith(
        "none of 3 columns drifted in 2 windows of 2502 rows or more"
    )


def test_days_that_differ_as_they_always_did_have_not_moved():
    # x has a level a day, as the temperature has: three days seldom look like the eight weeks before.
    untimed = 0
    for seed in range(10, 18):
        old, current = (
            stream(seed, 56, since=START - 56 * DAY, rows=200, weather=2.0),
            stream(-seed % 99, 6, weather=2.0),
        )
        found = judged(current, ONE, reference_of(old))
        assert found.verdict.status is Status.PASS
        assert not found.watched
        # By their rows alone the same windows would have moved beyond doubt.
        alone = judged(current, ONE, build_reference(old, FEATURES, POLICY))
        untimed += bool(alone.watched or alone.drifted)
    assert untimed >= 6


def test_what_days_explain_is_said_with_its_chance():
    weather = reference_of(stream(1, 56, since=START - 56 * DAY, rows=200, weather=1.0))
    found = judged(stream(2, 6, rows=200, weather=1.0).filter(days(3, 6)), ONE, weather)
    assert found.verdict.status is Status.PASS
    move = by_name(found)["x"].moves[0]
    assert move.held >= 0.1
    assert found.verdict.reason.endswith(
        f"the most is x, PSI {move.size:.3f}, as its days differ among themselves (chance {move.chance:.4f})"
    )


def test_a_move_of_the_newest_window_is_drift_only_where_one_window_suffices():
    current = stream(2, 6).with_columns(within(days(3, 6), "x", pl.col("x") + 2))
    assert judged(current).verdict.status is Status.PASS
    assert by_name(judged(current))["x"].psi > 1
    assert [f.feature for f in judged(current, ONE).drifted] == ["x"]


@pytest.mark.parametrize(
    "ended",
    [
        within(days(0, 3), "x", pl.col("x") + 2),
        within(days(0, 3), "x", None),
        within(days(0, 3), "c", pl.lit("SWF")),
    ],
    ids=["values", "missing", "unseen"],
)
def test_a_move_that_has_ended_is_no_drift(ended):
    for policy in (POLICY, ONE):
        found = judged(stream(2, 6).with_columns(ended), policy)
        assert found.verdict.status is Status.PASS, found.verdict.reason
        assert not found.watched


def test_a_move_that_lasts_is_told_with_the_least_of_its_windows():
    current = stream(2, 6).with_columns(x=pl.col("x") + pl.when(days(0, 3)).then(1.0).otherwise(2.0))
    move = by_name(judged(current))["x"].moves[0]
    assert move.held < move.size / 2
    assert (
        by_name(judged(current))["x"]
        .reason.partition(", ")[2]
        .startswith(f"PSI {move.size:.3f} (at least {move.held:.3f} in each of 2 windows), chance 0.0002, most by ")
    )


def test_moves_in_opposite_directions_are_not_one():
    # A third of x is missing in the reference; in one window a tenth, in the other more than half.
    gaps = pl.Series(np.random.default_rng(4).random(56 * 200) < 1 / 3)
    reference = reference_of(stream(1, 56, since=START - 56 * DAY, rows=200).with_columns(x=pl.when(~gaps).then("x")))
    place = pl.int_range(pl.len()) % 30
    up, down = place < 17, place < 3
    current = stream(2, 6)
    opposite = current.with_columns(x=pl.when(days(0, 3) & up | days(3, 6) & down).then(None).otherwise("x"))
    found = by_name(judged(opposite, reference=reference))["x"].moves[1]
    assert (found.held, found.level) == (0.0, 0)
    assert found.size == pytest.approx(0.1 - 1 / 3, abs=0.02)
    same = current.with_columns(x=pl.when(up).then(None).otherwise("x"))
    assert by_name(judged(same, reference=reference))["x"].moves[1].level == 2


def test_moves_that_undo_each_other_are_moves_although_their_sum_is_none():
    dice = np.random.default_rng(3)
    old = stream(1, 56, since=START - 56 * DAY, rows=200)
    even = reference_of(old.with_columns(c=pl.Series(dice.choice(["a", "b"], old.height))))
    current = stream(2, 6)
    first, second = (pl.Series(dice.choice(["a", "b"], current.height, p=[p, 1 - p])) for p in (0.8, 0.2))
    swings = by_name(judged(current.with_columns(c=pl.when(days(0, 3)).then(first).otherwise(second)), reference=even))
    assert swings["c"].moves[0].held > POLICY.drift_at
    assert swings["c"].status is Status.FAIL
    assert by_name(judged(current.with_columns(c=second), reference=even))["c"].status is Status.FAIL


@pytest.mark.parametrize("planted", [0, 0.5, 1, 1.4, 2])
def test_a_move_is_told_since_the_day_it_began(planted):
    current = stream(2, 6).with_columns(within(days(planted, 6), "x", pl.col("x") + 3))
    found = judged(current)
    assert [f.feature for f in found.drifted] == ["x"]
    assert abs(by_name(found)["x"].since - (START + planted * DAY)) <= DAY
    assert by_name(found)["c"].since is None


@pytest.mark.parametrize("kind", ["missing", "unseen"])
def test_shares_are_told_since_the_day_they_moved(kind):
    column, _, change = PLANTED[kind]
    current = stream(2, 6).with_columns(within(days(1, 6), column, change))
    assert abs(by_name(judged(current))[column].since - (START + DAY)) <= DAY


def test_since_is_in_the_newest_window_where_one_suffices():
    current = stream(2, 6).with_columns(within(days(2, 6), "x", pl.col("x") + 3))
    six_days = ONE.model_copy(update={"window_s": 6 * 86_400})
    assert abs(by_name(judged(current, six_days))["x"].since - (START + 2 * DAY)) <= DAY


def test_a_column_that_vanished_fails_at_once_and_is_told_since_when():
    current = stream(2, 6).with_columns(within(days(4, 6), "x", None), within(days(3, 6), "c", None))
    found = judged(current)
    assert {f.feature for f in found.drifted} == {"x", "c"}
    assert "the column is entirely missing (null or NaN in 2502 of 2502 rows)" in found.verdict.reason
    assert by_name(found)["c"].since == START + 3 * DAY
    assert by_name(found)["x"].since == START + 4 * DAY


@pytest.mark.parametrize(
    ("gone_days", "status"), [(0, Status.PASS), (0.5, Status.PASS), (1, Status.FAIL), (2, Status.FAIL)]
)
def test_a_column_that_vanished_for_a_day_fails_before_the_window_is_over(gone_days, status):
    lost = within(days(6 - gone_days, 6), "x", None)
    found = judged(stream(5, 6).with_columns(lost))
    x = by_name(found)["x"]
    assert (found.verdict.status, x.status) == (status, status)
    if status is Status.FAIL:
        begin = UNTIL - gone_days * DAY
        assert x.since == begin
        assert f"no row has had a value since {begin:%Y-%m-%d %H:%M} UTC; in the reference 0.0%" in x.reason


def test_a_day_without_values_is_nothing_new_where_the_reference_has_such_days():
    known = stream(1, 56, since=START - 56 * DAY, rows=200).with_columns(within(pl.col("t") >= START - DAY, "x", None))
    found = judged(stream(5, 6).with_columns(within(days(5, 6), "x", None)), reference=reference_of(known))
    assert by_name(found)["x"].status is Status.PASS


def test_a_few_rows_without_a_value_do_not_say_that_a_column_is_gone():
    """A night of 99 rows; 100 values are asked for."""
    rows = stream(5, 6)
    night = rows.filter(days(5, 6)).head(99).with_columns(x=pl.lit(None, pl.Float64))
    found = judged(pl.concat([rows.filter(days(0, 5)), night]))
    assert "no row has had a value" not in by_name(found)["x"].reason


def test_a_column_that_vanished_fails_even_while_the_older_window_lacks_data():
    current = stream(2, 6).filter(days(3, 6)).drop("x")
    found = judged(current)
    assert found.verdict.status is Status.FAIL
    assert [f.feature for f in found.drifted] == ["x"]
    assert {f.status for f in found.features if f.feature != "x"} == {Status.INCONCLUSIVE}
    assert "no such column in 2502 of 2502 rows" in found.verdict.reason
    assert (
        "of the others nothing can be told, because the window from 2013-04-25 00:00 to 2013-04-28 00:00 UTC has no rows"
        in (found.verdict.reason)
    )


def test_a_column_missing_from_a_few_rows_or_a_small_reference_is_inconclusive():
    few = stream(2, 6, rows=160).filter(days(3, 6)).drop("x")
    assert few.height < POLICY.min_rows
    assert judged(few).verdict.status is Status.INCONCLUSIVE
    small = reference_of(stream(1, 56, since=START - 56 * DAY, rows=8))
    assert judged(stream(2, 6).drop("x"), reference=small).verdict.status is Status.INCONCLUSIVE


def test_an_older_window_without_rows_is_inconclusive_and_not_a_pass():
    found = judged(stream(2, 6).filter(days(3, 6)))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.verdict.reason == "the window from 2013-04-25 00:00 to 2013-04-28 00:00 UTC has no rows"
    assert {f.status for f in found.features} == {Status.INCONCLUSIVE}
    assert judged(stream(2, 6).filter(days(3, 6)), ONE).verdict.status is Status.PASS


@pytest.mark.parametrize("hours", [6, 12])
def test_a_reference_too_short_to_rule_out_chance_is_inconclusive_about_what_moved(hours):
    # Of 56 mornings and the one judged each is the oddest by chance once in 57 times: no proof, whatever it looks like.
    policy = DriftPolicy(window_s=hours * 3600, persistence=1, min_rows=50)
    found = judged(stream(2, 6).with_columns(x=pl.col("x") + 3), policy)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "too few days to rule out chance, make drift.reference_s or drift.persistence larger" in found.verdict.reason
    assert [f.feature for f in found.features if f.status is Status.INCONCLUSIVE] == ["x"]
    assert judged(stream(2, 6), policy).verdict.status is Status.PASS
    longer = policy.model_copy(update={"persistence": 3})
    assert [f.feature for f in judged(stream(2, 6).with_columns(x=pl.col("x") + 3), longer).drifted] == ["x"]


def test_two_single_days_of_a_season_cannot_be_told_from_chance_but_what_does_not_matter_may():
    policy = DriftPolicy(window_s=86_400, persistence=2, seasonal=True)
    moved = stream(2, 6).with_columns(x=pl.col("x") + 3)
    assert judged(moved, policy).verdict.status is Status.INCONCLUSIVE
    assert judged(moved, policy, importance={"x": 0.0, "c": 1.0}).verdict.status is Status.PASS


def test_a_weekly_rhythm_is_no_drift_of_a_season():
    # On Saturdays and Sundays x is elsewhere, and a window of Friday to Sunday has more of them than other windows.
    weekend = within(pl.col("t").dt.weekday() >= 6, "x", pl.col("x") + 4)
    reference = reference_of(stream(1, 56, since=START - 56 * DAY, rows=300).with_columns(weekend))
    monday = datetime(2013, 4, 29, tzinfo=UTC)
    current = stream(2, 6, since=monday - 6 * DAY, rows=300).with_columns(weekend)
    assert by_name(judged(current, POLICY, reference, monday))["x"].psi > POLICY.drift_at
    seasonal = POLICY.model_copy(update={"seasonal": True})
    found = by_name(judged(current, seasonal, reference, monday))["x"]
    assert (found.status, found.watched) == (Status.PASS, False)
    assert found.psi < 0.05
    moved = current.with_columns(x=pl.col("x") + 2)
    assert by_name(judged(moved, seasonal, reference, monday))["x"].status is Status.FAIL


def identifiers(seed, count, new, since):
    """A row in `new` brings a name of its own day, the others one of 300 that come again."""
    rng = np.random.default_rng(seed)
    frame = stream(seed, count, since=since, rows=200)
    regular = pl.Series(rng.integers(0, 300, frame.height)).cast(pl.String)
    fresh = pl.col("t").dt.date().cast(pl.String) + pl.Series(rng.integers(0, 50, frame.height)).cast(pl.String)
    return frame.with_columns(c=pl.when(pl.Series(rng.random(frame.height) < new)).then(fresh).otherwise(regular))


def test_an_identifier_alarms_when_its_share_of_new_names_jumps_and_not_before():
    reference = reference_of(identifiers(1, 56, 0.4, START - 56 * DAY))
    usual = by_name(judged(identifiers(2, 6, 0.4, START), reference=reference))["c"]
    assert (usual.status, usual.watched) == (Status.PASS, False)
    assert usual.moves[2].size == pytest.approx(0.0, abs=0.02)
    jumped = by_name(judged(identifiers(3, 6, 0.6, START), reference=reference))["c"]
    assert jumped.status is Status.FAIL
    assert jumped.moves[2].size == pytest.approx(0.2, abs=0.03)
    assert "values of a category never seen 4" in jumped.reason


def test_unseen_values_alone_in_the_newest_window_wait_for_the_next_and_are_told_without_a_number():
    current = stream(2, 6).with_columns(within(days(3, 6), "c", pl.lit("SWF")))
    c = by_name(judged(current))["c"]
    assert (c.status, c.reason) == (Status.PASS, "there is no value that both sides know")
    assert by_name(judged(current, ONE))["c"].status is Status.FAIL


def test_the_same_windows_are_judged_alike_again():
    current = stream(2, 6, rows=200, weather=0.5)
    assert judged(current) == judged(current)


def test_windows_counted_on_other_bins_are_refused():
    other = reference_of(stream(9, 20))
    windows = windows_before(profile_by_hour(stream(2, 6), other, "t"), REFERENCE, UNTIL, POLICY)
    with pytest.raises(UsageError, match="profile them on the current reference"):
        detect_drift(REFERENCE, windows, POLICY)


ODD = {
    "constant": pl.lit(5.0),
    "missing": pl.lit(None, pl.Float64),
    "infinite": pl.lit(math.inf),
    "text": pl.lit("n/a"),
    "list": pl.concat_list("x"),
    "as it was": pl.col("x"),
}


@pytest.mark.parametrize("now", [*ODD, "vanished"])
@pytest.mark.parametrize("was", ODD)
def test_odd_columns_have_a_verdict_with_a_reason(was, now):
    reference = reference_of(stream(1, 56, since=START - 56 * DAY, rows=50).with_columns(ODD[was].alias("x")))
    current = stream(2, 6, rows=200)
    current = current.drop("x") if now == "vanished" else current.with_columns(ODD[now].alias("x"))
    found = judged(current, reference=reference)
    valued = {"constant", "as it was"}
    expected = Status.PASS if was == now in valued else Status.FAIL if {was, now} & valued else Status.INCONCLUSIVE
    assert found.verdict.status is expected
    assert by_name(found)["x"].status is expected
    assert {f.status for f in found.features if f.feature != "x"} == {Status.PASS}
    assert all(f.reason for f in found.features)


cell = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, math.nan, math.inf]))
some_rows = st.lists(
    st.tuples(st.integers(0, 40 * 24 - 1), cell, st.sampled_from([None, "a", "b", "z", ""])), max_size=60
)


def scattered(rows, repeat):
    frame = pl.DataFrame(rows, schema={"h": pl.Int64, "x": pl.Float64, "c": pl.String}, orient="row", strict=False)
    frame = pl.concat([frame] * repeat).with_columns(t=pl.lit(UNTIL - 40 * DAY) + pl.duration(hours="h"))
    return frame.with_columns(score=pl.lit(0.5))


@settings(max_examples=60, deadline=None)
@given(
    some_rows,
    some_rows,
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from([6 * 3600, 86_400, 3 * 86_400]),
    st.integers(1, 2),
    st.integers(0, 30),
)
def test_whatever_comes_there_is_a_verdict_and_no_pass_without_rows(
    was, now, least, seasonal, window_s, persistence, hours
):
    policy = DriftPolicy(min_rows=least, seasonal=seasonal, window_s=window_s, persistence=persistence)
    reference = reference_of(scattered(was, 3), policy)
    found = judged(scattered(now, 1), policy, reference, UNTIL - timedelta(hours=hours))
    assert found.verdict.reason
    assert all(f.reason for f in found.features)
    assert len(found.features) == 3
    end = 40 * 24 - hours
    starts = [end - (k + 1) * window_s // 3600 for k in range(persistence)]
    rows = [sum(start <= h < start + window_s // 3600 for h, *_ in now) for start in starts]
    if min(rows, default=0) < least or 3 * len(was) < least:
        assert found.verdict.status is not Status.PASS
    if rows[0] < least:
        assert found.verdict.status is Status.INCONCLUSIVE
