from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.spec import PerformancePolicy
from validation.calibration import Calibration, calibrate
from validation.estimate import check_estimate, estimate_performance, expected_metrics, with_estimate
from validation.metrics import METRICS, measure
from validation.performance import measure_performance
from validation.verdict import Status

POLICY = PerformancePolicy(min_rows=500, max_auc_drop=0.05)
START = datetime(2013, 3, 1, tzinfo=UTC)
# A score is its own probability, for certain.
EXACT = Calibration((0.0, 1.0), (0.0, 1.0), ((0.0, 0.0), (0.0, 0.0)), 0.0, 10**9, 1, 0.0, 1.0)


def drawn(rng, rows, *, days=8, mean=-1.0, moved=0.0, means=lambda p: p):
    """Scores of a model that is too sure of itself, and labels drawn from what they are worth.

    Args:
        mean: of the log odds.
        moved: how much the log odds of a day move beside the scores.
        means: what a probability has become since.
    """
    day = np.arange(rows) % days
    odds = rng.normal(mean, 1.2, rows)
    chance = means(1 / (1 + np.exp(-(odds + rng.normal(0, moved, days)[day]))))
    return 1 / (1 + np.exp(-1.7 * odds)), rng.random(rows) < chance, day


def frame(score, label, day):
    times = [START + timedelta(days=int(d)) for d in day]
    return pl.DataFrame({"score": score, "label": label, "event_timestamp": times})


def held_by(rng, times, moved):
    """How often the estimate's interval held each metric as measured afterwards, and how much wider than needed it was."""
    held, errors, misses = dict.fromkeys(METRICS, 0), {m: [] for m in METRICS}, {m: [] for m in METRICS}
    for _ in range(times):
        calibration = calibrate(*drawn(rng, 4_000, moved=moved))
        score, label, day = drawn(rng, 2_000, mean=-0.7, moved=moved)
        truth = measure(score, label, day)
        for name, found in expected_metrics(score, day, calibration).items():
            held[name] += found.low <= truth[name].value <= found.high
            errors[name].append(found.error)
            misses[name].append(truth[name].value - found.value)
    return held, {name: np.mean(errors[name]) / np.std(misses[name]) for name in METRICS}


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]) | st.floats(0.01, 0.99), min_size=2, max_size=7))
def test_what_is_expected_is_the_mean_over_every_way_the_labels_can_fall(scores):
    score = np.array(scores)
    found = expected_metrics(score, np.zeros(score.size, dtype=np.int64), EXACT)
    right = pairs = brier = loss = true = 0.0
    for labels in itertools.product([0, 1], repeat=score.size):
        chance = math.prod(s if y else 1 - s for s, y in zip(scores, labels, strict=True))
        if not chance:
            continue
        for (a, y), (b, z) in itertools.product(zip(scores, labels, strict=True), repeat=2):
            right += chance * (y and not z) * ((a > b) + 0.5 * (a == b))
            pairs += chance * (y and not z)
        brier += chance * sum((s - y) ** 2 for s, y in zip(scores, labels, strict=True)) / len(scores)
        each = [-math.log(s if y else 1 - s) for s, y in zip(scores, labels, strict=True)]
        loss += chance * sum(each) / len(scores)
        true += chance * sum(labels) / len(scores)
    assert found["brier"].value == pytest.approx(brier)
    assert found["log_loss"].value == pytest.approx(loss, abs=1e-9)
    assert found["positive_rate"].value == pytest.approx(true)
    if pairs > 1e-9:
        assert found["auc"].value == pytest.approx(right / pairs)
    else:
        assert math.isnan(found["auc"].value)


def test_the_expected_auc_is_scikit_learns_of_rows_that_are_both_in_parts():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    score = rng.beta(2, 4, 5_000).round(3)
    whole = roc_auc_score(np.repeat([True, False], 5_000), np.tile(score, 2), sample_weight=[*score, *(1 - score)])
    # There, a row is also paired with itself, one pair of 5,000.
    found = expected_metrics(score, np.zeros(5_000, dtype=np.int64), EXACT)
    assert found["auc"].value == pytest.approx(whole, abs=2e-4)


def test_metrics_scatter_as_much_as_the_interval_says_when_labels_fall_by_chance():
    rng = np.random.default_rng(2)
    score = rng.beta(2, 4, 600)
    claimed = expected_metrics(score, np.zeros(600, dtype=np.int64), EXACT)
    truths = [measure(score, rng.random(600) < score) for _ in range(1_500)]
    for name in METRICS:
        values = [t[name].value for t in truths]
        assert claimed[name].value == pytest.approx(np.mean(values), abs=4 * claimed[name].error / math.sqrt(1_500))
        assert claimed[name].error == pytest.approx(np.std(values), rel=0.08)


@pytest.mark.parametrize("moved", [0.0, 0.4])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_claims(moved):
    """Whether days are alike or not. The error may not be told far too large either."""
    held, wider = held_by(np.random.default_rng(3), 300, moved)
    assert min(held.values()) >= scipy.stats.binom.ppf(0.0005, 300, 0.95), held
    assert max(wider.values()) < 1.6, wider
    assert min(wider.values()) > 0.8, wider


def test_scores_that_are_worth_less_where_the_data_has_moved_are_estimated_to_be():
    rng = np.random.default_rng(5)
    calibration = calibrate(*drawn(rng, 20_000))
    score, label, day = drawn(rng, 20_000)
    # Only the middle of the scores is left: the model has less to tell apart.
    middle = (score > 0.15) & (score < 0.5)
    estimate = estimate_performance(frame(score, label, day).filter(pl.Series(middle)), calibration, 0.78, POLICY)
    truth = measure(score[middle], label[middle])["auc"].value
    assert estimate.verdict.status is Status.FAIL
    assert truth < 0.70
    assert estimate.intervals["auc"].low <= truth <= estimate.intervals["auc"].high
    assert "estimated AUC 0." in estimate.verdict.reason
    assert "if scores mean what they meant at the champion's gate" in estimate.verdict.reason
    assert estimate.verdict.measurements["estimated_auc"] == estimate.intervals["auc"].value


@pytest.mark.parametrize(
    ("expected", "status"),
    [(0.78, Status.PASS), (None, Status.INCONCLUSIVE), (math.nan, Status.INCONCLUSIVE), (0.95, Status.FAIL)],
)
def test_an_estimate_is_held_against_the_same_line_as_what_is_measured(expected, status):
    rng = np.random.default_rng(6)
    calibration = calibrate(*drawn(rng, 6_000))
    assert estimate_performance(frame(*drawn(rng, 3_000)), calibration, expected, POLICY).verdict.status is status


def test_an_estimate_below_the_line_whose_interval_reaches_above_is_inconclusive():
    rng = np.random.default_rng(6)
    calibration, rows = calibrate(*drawn(rng, 6_000)), frame(*drawn(rng, 3_000))
    area = estimate_performance(rows, calibration, None, POLICY).intervals["auc"]
    found = estimate_performance(rows, calibration, (area.value + area.high) / 2 + 0.05, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "its interval reaches above" in found.verdict.reason


def test_where_the_world_is_as_it_was_the_truth_confirms_the_estimate():
    rng = np.random.default_rng(7)
    calibration, rows = calibrate(*drawn(rng, 6_000)), drawn(rng, 3_000)
    check = check_estimate(frame(*rows), calibration, POLICY)
    assert check.verdict.status is Status.PASS
    assert check.rows == 3_000
    truth = measure(*rows)
    for found in check.metrics:
        assert found.covered
        assert found.measured == truth[found.metric].value
        assert found.difference == pytest.approx(found.measured - found.estimated.value)


def test_the_intervals_of_a_check_are_wide_enough_to_hold_all_four_together():
    rng = np.random.default_rng(7)
    calibration, rows = calibrate(*drawn(rng, 6_000)), drawn(rng, 3_000)
    for found in check_estimate(frame(*rows), calibration, POLICY).metrics:
        reach = scipy.stats.t.ppf(1 - 0.05 / 4 / 2, 7) * found.estimated.error
        assert found.estimated.high == pytest.approx(found.estimated.value + reach)


def test_a_change_of_what_scores_mean_is_a_miss_and_named_a_sign_of_concept_drift():
    rng = np.random.default_rng(8)
    calibration = calibrate(*drawn(rng, 6_000))
    check = check_estimate(frame(*drawn(rng, 3_000, means=lambda p: 0.6 * p + 0.2)), calibration, POLICY)
    assert check.verdict.status is Status.FAIL
    assert "AUC 0." in check.verdict.reason
    assert "a sign of concept drift" in check.verdict.reason
    assert not next(c for c in check.metrics if c.metric == "auc").covered


def test_the_truth_rarely_misses_by_chance_in_any_of_its_metrics():
    rng = np.random.default_rng(9)
    misses = 0
    for _ in range(200):
        calibration = calibrate(*drawn(rng, 3_000, moved=0.3))
        misses += (
            check_estimate(frame(*drawn(rng, 1_000, moved=0.3)), calibration, POLICY).verdict.status is Status.FAIL
        )
    assert misses <= scipy.stats.binom.ppf(0.999, 200, 0.05)


def test_an_estimate_warns_and_labels_decide():
    rng = np.random.default_rng(10)
    calibration = calibrate(*drawn(rng, 6_000))
    rows = frame(*drawn(rng, 3_000))
    measured = measure_performance(rows, 0.75, POLICY)
    assert measured.verdict.status is Status.PASS
    bad = estimate_performance(rows, calibration, 0.95, POLICY)
    missed = check_estimate(rows.with_columns(~pl.col("label")), calibration, POLICY)
    warned = with_estimate(measured, bad, missed)
    assert warned.verdict.status is Status.PASS
    assert warned.verdict.reason == (
        f"{measured.verdict.reason}; warning: {bad.verdict.reason}; warning: {missed.verdict.reason}"
    )
    good, held = estimate_performance(rows, calibration, 0.75, POLICY), check_estimate(rows, calibration, POLICY)
    assert with_estimate(measured, good, held) == measured


def rows_of(change):
    return change(frame(*drawn(np.random.default_rng(11), 1_000)))


def holes(f, times, value):
    return f.with_columns(
        score=pl.when(pl.int_range(pl.len()) < times).then(pl.lit(value, pl.Float64)).otherwise("score")
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.clear(), "0 predictions without a label"),
        (lambda f: f.head(1), "1 predictions without a label"),
        (lambda f: f.head(499), "499 predictions without a label, fewer than the 500"),
        (lambda f: f.with_columns(score=pl.lit(None)), "1000 of 1000"),
        (lambda f: holes(f, 51, math.nan), "51 of 1000 predictions without a label have no finite score, more than 5%"),
        (lambda f: holes(f, 51, math.inf), "have no finite score"),
        (lambda f: holes(f, 1, 1.5), "1 of 1000 scores are no probabilities, such as 1.5"),
        (lambda f: holes(f, 60, 0.9999999), "60 of 1000 scores lie beyond those of the champion's gate"),
    ],
)
def test_where_nothing_can_be_estimated_it_is_inconclusive_with_the_reason(change, told):
    calibration = calibrate(*drawn(np.random.default_rng(12), 6_000))
    found = estimate_performance(rows_of(change), calibration, 0.78, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert told in found.verdict.reason
    assert all(math.isnan(v) for one in found.intervals.values() for v in (one.value, one.low, one.high))
    check = check_estimate(rows_of(change), calibration, POLICY)
    assert (check.verdict.status, check.metrics) == (Status.INCONCLUSIVE, ())


def test_without_a_calibration_nothing_is_estimated_and_the_mend_is_told():
    rows = rows_of(lambda f: f)
    for verdict in (
        estimate_performance(rows, None, 0.78, POLICY).verdict,
        check_estimate(rows, None, POLICY).verdict,
    ):
        assert verdict.status is Status.INCONCLUSIVE
        assert "its next retrain brings one" in verdict.reason


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop("score"), "lack the columns ['score']"),
        (lambda f: f.with_columns(pl.col("score").cast(pl.String)), "'score' is String"),
        (lambda f: f.with_columns(event_timestamp=pl.lit("yesterday")), "'event_timestamp' is String"),
    ],
)
def test_a_frame_that_cannot_be_read_is_an_error(change, told):
    calibration = calibrate(*drawn(np.random.default_rng(12), 6_000))
    for verdict in (
        estimate_performance(rows_of(change), calibration, 0.78, POLICY).verdict,
        check_estimate(rows_of(change), calibration, POLICY).verdict,
    ):
        assert verdict.status is Status.ERROR
        assert told in verdict.reason


def test_labels_of_one_class_check_nothing():
    calibration = calibrate(*drawn(np.random.default_rng(12), 6_000))
    for label in (False, True):
        found = check_estimate(rows_of(lambda f, y=label: f.with_columns(label=pl.lit(y))), calibration, POLICY)
        assert found.verdict.status is Status.INCONCLUSIVE
        assert f"{1_000 * label} of 1000 labels are true" in found.verdict.reason


def test_scores_all_the_same_are_estimated_to_tell_nothing_apart():
    calibration = calibrate(np.full(800, 0.3), np.arange(800) % 4 == 0, np.arange(800) % 8)
    rows = rows_of(lambda f: f.with_columns(score=pl.lit(0.3)))
    found = estimate_performance(rows, calibration, 0.78, POLICY)
    assert found.intervals["auc"].value == pytest.approx(0.5)
    assert found.intervals["positive_rate"].value == pytest.approx(0.25)
    assert found.verdict.status is Status.FAIL


@given(st.integers(0, 10_000), st.integers(1, 300))
@settings(max_examples=40)
def test_the_order_of_rows_does_not_matter_and_every_interval_stays_in_bounds(seed, rows):
    rng = np.random.default_rng(seed)
    calibration = calibrate(*drawn(rng, 800, moved=0.5))
    score, _, day = drawn(rng, rows)
    order = rng.permutation(rows)
    one = expected_metrics(score, day, calibration)
    other = expected_metrics(score[order], day[order], calibration)
    for name in METRICS:
        assert vars(one[name]) == pytest.approx(vars(other[name]), nan_ok=True)
        if math.isfinite(one[name].value):
            assert 0 <= one[name].low <= one[name].value <= one[name].high
            assert one[name].high <= (math.inf if name == "log_loss" else 1)
