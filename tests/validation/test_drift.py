from __future__ import annotations

import math
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from perennial.errors import UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.drift import detect_drift
from validation.profile import build_reference, profile
from validation.verdict import Status
from validation.windows import Window

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FEATURES = (Feature(name="x", kind="numeric"), Feature(name="c", kind="categorical"))
POLICY = DriftPolicy(persistence=1, min_rows=500)


def frame(seed, rows=5000, *, x_mean=0.0, x_scale=1.0, c=(0.5, 0.3, 0.2), score_mean=0.0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": rng.normal(x_mean, x_scale, rows),
            "c": rng.choice(["JFK", "LGA", "EWR"], rows, p=c),
            "score": 1 / (1 + np.exp(-rng.normal(score_mean, 1, rows))),
        }
    )


REFERENCE = build_reference(frame(1), FEATURES, POLICY)


def judged(current, importance=None, policy=POLICY, reference=REFERENCE):
    return detect_drift(reference, [Window.of_rows(profile(current, reference))], policy, importance)


def by_name(found):
    return {f.feature: f for f in found.features}


@pytest.mark.parametrize("seed", range(2, 7))
def test_rows_from_the_same_distribution_have_not_moved(seed):
    found = judged(frame(seed))
    assert found.verdict.status is Status.PASS
    assert not found.drifted
    assert not found.watched
    assert "none of 3 columns drifted in 5000 rows" in found.verdict.reason


def test_a_feature_that_moved_fails_and_the_sentence_names_it_with_its_numbers():
    found = judged(frame(2, x_mean=1.5))
    assert found.verdict.status is Status.FAIL
    assert [f.feature for f in found.drifted] == ["x"]
    told = rf"x: median about -?0\.0\d+ -> 1\.[45]\d, PSI {by_name(found)['x'].psi:.3f}, chance below 0\.0001, most by "
    assert re.search(told, found.verdict.reason)
    assert found.verdict.measurements["drifted_features"] == 1
    assert found.verdict.measurements["max_psi"] == by_name(found)["x"].psi


def test_psi_is_that_of_the_shares_of_a_categorical_feature():
    # Exact shares: p = 1/2, 1/2 and q = 1/4, 3/4, whose PSI is ln(3)/4.
    reference = build_reference(pl.DataFrame({"c": ["a", "b"] * 500}), FEATURES[1:], POLICY, extra=())
    found = judged(pl.DataFrame({"c": ["a", "b", "b", "b"] * 250}), reference=reference)
    assert by_name(found)["c"].psi == pytest.approx(math.log(3) / 4)
    # -1/4 ln(1/2) of it is a's, 1/4 ln(3/2) b's; with 1,000 rows on each side a chi-square of 137 and one degree.
    assert by_name(found)["c"].reason == "PSI 0.275, chance below 0.0001, most by a: 50.0% -> 25.0% of values"
    assert found.drifted[0].moves[0].chance == pytest.approx(chi2(1).sf(500 * math.log(3) / 4))


def test_a_score_that_moved_fails_by_itself():
    found = judged(frame(2, score_mean=1.5))
    assert [f.feature for f in found.drifted] == ["score"]
    assert found.verdict.measurements["score_psi"] > 0.25


def test_several_that_moved_stand_worst_first():
    found = judged(frame(2, x_mean=1.2, score_mean=2.5, c=(0.1, 0.3, 0.6)))
    psis = [f.psi for f in found.drifted]
    assert len(psis) == 3
    assert psis == sorted(psis, reverse=True)
    positions = [found.verdict.reason.index(f" {f.feature}: ") for f in found.drifted]
    assert positions == sorted(positions)


def test_a_small_move_passes_and_is_named():
    # p = 1/2, 1/2 and q = .34, .66: .16 ln(.66/.34) + ... = .16 ln(.5/.34) + .16 ln(.66/.5) = .16 ln(.66/.34) = 0.106
    reference = build_reference(pl.DataFrame({"c": ["a", "b"] * 500}), FEATURES[1:], POLICY, extra=())
    found = judged(pl.DataFrame({"c": ["a"] * 340 + ["b"] * 660}), reference=reference)
    assert found.verdict.status is Status.PASS
    assert [f.feature for f in found.watched] == ["c"]
    assert found.verdict.reason.startswith(
        "none of 1 columns drifted in 1000 rows: the most is c, PSI 0.106; watched: c"
    )


@pytest.mark.parametrize("rows", [0, 1, 499])
def test_too_few_rows_are_inconclusive_even_when_they_look_different(rows):
    found = judged(frame(2, rows, x_mean=9.0))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert f"{rows} rows, fewer than the 500" in found.verdict.reason
    assert {f.status for f in found.features} == {Status.INCONCLUSIVE}
    assert not found.drifted
    assert not found.watched


def test_too_small_a_reference_is_inconclusive():
    small = build_reference(frame(1, 499), FEATURES, POLICY)
    found = judged(frame(2), reference=small)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "the reference has 499 rows" in found.verdict.reason


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop("x"), "no such column in 5000 of 5000 rows"),
        (lambda f: f.with_columns(x=pl.lit(None, pl.Float64)), "null or NaN in 5000 of 5000 rows"),
        (lambda f: f.with_columns(x=pl.lit(math.nan)), "null or NaN in 5000 of 5000 rows"),
        (lambda f: f.with_columns(x=pl.lit("n/a")), "unreadable type in 5000 of 5000 rows"),
        (lambda f: f.with_columns(x=pl.concat_list("x")), "unreadable type in 5000 of 5000 rows"),
    ],
)
@pytest.mark.parametrize("importance", [None, {"x": 0.0, "c": 1.0}])
def test_a_column_that_has_no_values_any_more_fails_with_the_reason(change, told, importance):
    found = judged(change(frame(2)), importance)
    assert found.verdict.status is Status.FAIL
    assert f"x: the column is entirely missing ({told}); in the reference 0.0% of rows were" in found.verdict.reason
    assert by_name(found)["x"].missing_rate_current == 1.0


def test_more_missing_values_are_drift():
    holes = frame(2).with_columns(x=pl.when(pl.int_range(pl.len()) % 3 > 0).then("x"))
    found = judged(holes)
    x = by_name(found)["x"]
    assert (x.status, x.missing_rate_reference) == (Status.FAIL, 0.0)
    assert x.missing_rate_current == pytest.approx(1 / 3, abs=1e-3)
    assert x.reason == "rows without a value 0.0% -> 33.3%, chance below 0.0001"
    # The values that are left are as they were, and are not blamed.
    assert x.psi < 0.01


def test_a_category_never_seen_is_drift():
    new = frame(2).with_columns(c=pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("SWF")).otherwise("c"))
    found = by_name(judged(new))["c"]
    assert found.status is Status.FAIL
    assert found.reason == "values of a category never seen 0.0% -> 20.0%, chance below 0.0001"
    assert found.psi < 0.01


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_are_rows_without_a_value(value):
    wild = frame(2).with_columns(x=pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit(value)).otherwise("x"))
    found = by_name(judged(wild))["x"]
    assert (found.status, found.missing_rate_current) == (Status.FAIL, 0.2)
    assert found.reason == "rows without a value 0.0% -> 20.0%, chance below 0.0001"


@pytest.mark.parametrize(
    ("kind", "share", "level"),
    [("missing", 0.01, 0), ("missing", 0.05, 1), ("missing", 0.2, 2), ("unseen", 0.01, 0), ("unseen", 0.05, 1)],
)
def test_a_share_is_judged_in_points_and_its_chance_is_that_of_two_proportions(kind, share, level):
    some = pl.int_range(pl.len()) < share * pl.len()
    what = {"missing": pl.lit(None, pl.String), "unseen": pl.lit("SWF")}[kind]
    reference = build_reference(frame(1).head(3000), FEATURES[1:], POLICY, extra=())
    found = by_name(judged(frame(2).with_columns(c=pl.when(some).then(what).otherwise("c")), reference=reference))["c"]
    move = next(m for m in found.moves if m.kind == kind)
    assert (move.size, move.held, move.level) == (pytest.approx(share), pytest.approx(share), level)
    if level:
        # The pooled z-test of 0 in 3,000 and share x 5,000 in 5,000 is the chi-square test of the 2 x 2 table.
        table = [[3000, 0], [5000 * (1 - share), 5000 * share]]
        assert move.chance == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=1e-6, abs=0)
    assert found.status is (Status.FAIL if level == 2 else Status.PASS)
    assert found.watched is (level == 1)


def test_windows_of_rows_are_asked_for_their_chance_together_and_apart():
    def some(a, b, void):
        return pl.DataFrame({"c": ["a"] * a + ["b"] * b + [None] * void})

    policy = DriftPolicy(persistence=2, min_rows=100)
    reference = build_reference(some(95, 95, 10), FEATURES[1:], policy, extra=())
    windows = [Window.of_rows(profile(f, reference)) for f in (some(30, 61, 9), some(28, 64, 8))]
    found = detect_drift(reference, windows, policy)
    values, missing, _ = by_name(found)["c"].moves
    # 10 of 200 rows without a value, then 9 and 8 of 100.
    assert (missing.size, missing.held) == (pytest.approx(0.04), pytest.approx(0.03))
    # The chance of both together is the smaller one here; doubled, because that of each by itself was asked, too.
    together = chi2_contingency([[190, 10], [183, 17]], correction=False).pvalue
    assert missing.chance == pytest.approx(2 * together, rel=1e-9)
    # 95, 95 against 58, 125.
    share = 58 / 183
    index = (share - 0.5) * math.log(share / 0.5) + (0.5 - share) * math.log((1 - share) / 0.5)
    assert values.chance == pytest.approx(2 * chi2(1).sf(index / (1 / 190 + 1 / 183)), rel=1e-9)
    assert "in 2 windows of 100 rows or more" in found.verdict.reason


def test_fewer_missing_values_are_drift_too():
    holes = pl.when(pl.int_range(pl.len()) % 3 > 0).then("x")
    reference = build_reference(frame(1).with_columns(x=holes), FEATURES, POLICY)
    found = by_name(judged(frame(2), reference=reference))["x"]
    assert (found.status, found.moves[1].size) == (Status.FAIL, pytest.approx(-1 / 3, abs=1e-3))
    assert found.reason == "rows without a value 33.3% -> 0.0%, chance below 0.0001"


def test_a_constant_that_stays_has_not_moved_and_one_that_changes_has():
    reference = build_reference(frame(1).with_columns(x=pl.lit(5.0)), FEATURES, POLICY)
    assert by_name(judged(frame(2).with_columns(x=pl.lit(5.0)), reference=reference))["x"].psi == 0
    found = judged(frame(2).with_columns(x=pl.lit(6.0)), reference=reference)
    assert [f.feature for f in found.drifted] == ["x"]


def test_a_column_without_values_on_both_sides_is_inconclusive_and_never_a_pass():
    void = pl.lit(None, pl.Float64)
    reference = build_reference(frame(1).with_columns(x=void), FEATURES, POLICY)
    found = judged(frame(2).with_columns(x=void), reference=reference)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "x: no value in 5000 reference rows and none in 5000 current ones" in found.verdict.reason


@pytest.mark.parametrize("rate", [0.95, 0.999])
def test_a_column_that_seldom_had_a_value_and_has_none_now_is_inconclusive(rate):
    seldom = pl.when(pl.int_range(pl.len()) >= rate * pl.len()).then("x")
    reference = build_reference(frame(1).with_columns(x=seldom), FEATURES, POLICY)
    found = judged(frame(2).with_columns(x=pl.lit(None, pl.Float64)), reference=reference)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert f"x: no value in 5000 current rows; in the reference {rate:.1%} of rows had none" in found.verdict.reason


def test_a_few_values_where_the_reference_had_none_are_inconclusive():
    reference = build_reference(frame(1).with_columns(x=pl.lit(None, pl.Float64)), FEATURES, POLICY)
    few = frame(2).with_columns(x=pl.when(pl.int_range(pl.len()) < 5).then("x"))
    found = judged(few, reference=reference)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "x: no value in 5000 reference rows; 99.9% of 5000 current ones have none" in found.verdict.reason


def test_values_where_the_reference_had_none_are_drift():
    reference = build_reference(frame(1).with_columns(x=pl.lit(None, pl.Float64)), FEATURES, POLICY)
    assert [f.feature for f in judged(frame(2), reference=reference).drifted] == ["x"]


def test_a_number_that_became_a_text_of_the_same_number_has_not_moved():
    assert judged(frame(2).with_columns(pl.col("x").cast(pl.String))).verdict.status is Status.PASS


def test_a_feature_the_model_does_not_use_is_named_and_does_not_fail():
    moved = frame(2, x_mean=1.5)
    found = judged(moved, {"x": 0.0, "c": 12.0})
    assert found.verdict.status is Status.PASS
    assert [f.feature for f in found.watched] == ["x"]
    assert "the model does not use it" in by_name(found)["x"].reason
    assert judged(moved, {"c": 12.0}).verdict.status is Status.FAIL
    assert judged(moved, {"x": 0.0, "c": 0.0}).verdict.status is Status.FAIL


@pytest.mark.parametrize(("share", "status"), [(0.0199, Status.PASS), (0.02, Status.FAIL)])
def test_a_feature_fails_from_the_share_of_importance_that_matters(share, status):
    found = judged(frame(2, x_mean=1.5), {"x": 50 * share, "c": 50 * (1 - share)})
    x = by_name(found)["x"]
    assert (found.verdict.status, x.watched) == (status, status is Status.PASS)
    assert x.importance == pytest.approx(share)
    assert ("the model hardly uses it (2.0% of its importance)" in x.reason) is x.watched
    everything = POLICY.model_copy(update={"matters_from": 0.0})
    assert judged(frame(2, x_mean=1.5), {"x": 0.0, "c": 1.0}, everything).verdict.status is Status.FAIL


@pytest.mark.parametrize(("share", "status"), [(0.0049, Status.PASS), (0.0051, Status.FAIL)])
def test_where_a_hundred_features_matter_alike_none_needs_two_percent(share, status):
    others = {f"o{i}": (1 - share) / 99 for i in range(99)}
    assert judged(frame(2, x_mean=1.5), {"x": share, **others}).verdict.status is status


def test_importance_weighs_the_order_of_what_moved():
    moved = frame(2, x_mean=1.5, c=(0.1, 0.3, 0.6))
    plain = judged(moved)
    assert [f.feature for f in plain.drifted] == ["x", "c"]
    assert [f.feature for f in judged(moved, {"x": 5.0, "c": 95.0}).drifted] == ["c", "x"]


def test_a_window_counted_on_other_bins_is_refused():
    other = build_reference(frame(9), FEATURES, POLICY)
    assert len(other.counts) == len(REFERENCE.counts)
    for windows in ([], [Window.of_rows(profile(frame(2), other))]):
        with pytest.raises(UsageError, match="profile them on the current reference"):
            detect_drift(REFERENCE, windows, POLICY)


@pytest.mark.parametrize(("values", "status"), [(59, Status.INCONCLUSIVE), (60, Status.PASS)])
def test_a_column_of_few_values_in_many_rows_is_inconclusive_and_no_pass(values, status):
    def mostly_void(n):
        return pl.DataFrame({"c": (["a", "b"] * n)[:n] + [None] * (15 * n)})

    reference = build_reference(mostly_void(300), FEATURES[1:], POLICY, extra=())
    found = judged(mostly_void(values), reference=reference, policy=DriftPolicy(persistence=1, min_rows=300))
    assert found.verdict.status is status
    told = f"{values} values in the reference or the newest window, fewer than the 60 that can be judged"
    assert (told in found.verdict.reason) is (status is Status.INCONCLUSIVE)


def test_a_column_whose_few_values_are_all_new_does_not_hide_behind_its_missing_rows():
    def sparse(name):
        return pl.DataFrame({"c": [name] * 150 + [None] * 9_850})

    reference = build_reference(sparse("a"), FEATURES[1:], POLICY, extra=())
    found = judged(sparse("new"), reference=reference)
    assert found.verdict.status is Status.FAIL
    assert "values of a category never seen 0.0% -> 100.0%" in found.verdict.reason


def test_a_column_of_unseen_values_alone_is_told_without_a_number_that_is_none():
    unseen = frame(2).with_columns(c=pl.lit("SWF"))
    c = by_name(judged(unseen, {"x": 1.0, "c": 0.0}))["c"]
    assert math.isnan(c.psi)
    assert (c.status, c.watched) == (Status.PASS, True)
    assert c.reason == "values of a category never seen 0.0% -> 100.0%, chance below 0.0001; the model does not use it"
    assert "nan" not in judged(unseen, {"x": 1.0, "c": 0.0}).verdict.reason


messy = st.one_of(st.none(), st.floats(), st.sampled_from(["JFK", "n/a", "1", ""]), st.booleans(), st.integers(-9, 9))


@settings(deadline=None)
@given(st.lists(messy, max_size=30), st.lists(messy, max_size=30), st.integers(1, 20))
def test_whatever_comes_there_is_a_verdict_with_a_reason_and_no_pass_without_rows(x, c, least):
    n = min(len(x), len(c))
    current = pl.DataFrame(
        {"x": pl.Series(x[:n], strict=False), "c": pl.Series(c[:n], strict=False), "score": pl.Series([0.5] * n)}
    )
    found = judged(current, policy=DriftPolicy(persistence=1, min_rows=least))
    assert found.verdict.reason
    assert len(found.features) == 3
    assert all(f.reason for f in found.features)
    assert found.verdict.status is not Status.PASS if n < least else found.verdict.status in Status
