from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from validation.metrics import METRICS, MIN_DAYS, auc, auc_scatter, days_of, mean, measure, rate

rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0, 1), st.booleans(), st.integers(0, 7)),
    min_size=1,
    max_size=50,
)


def columns(some):
    score, label, day = zip(*some, strict=True)
    return np.array(score, dtype=float), np.array(label, dtype=bool), np.array(day, dtype=np.int64)


def within(held, of, claimed):
    """Whether a count of successes is what that probability gives in all but one of a thousand tries."""
    return 0.0005 < scipy.stats.binom.cdf(held, of, claimed) < 0.9995


def test_a_mean_of_independent_rows_has_the_usual_standard_error():
    losses = np.array([0.1, 0.4, 0.4, 0.7, 0.9])
    found = mean(losses)
    error = scipy.stats.sem(losses)
    assert (found.value, found.error) == (pytest.approx(0.5), pytest.approx(error))
    assert (found.low, found.high) == pytest.approx(scipy.stats.norm.interval(0.95, 0.5, error))


def test_with_days_of_equal_size_the_error_is_that_of_the_mean_of_days():
    rng = np.random.default_rng(1)
    losses = rng.random((7, 30)) * 0.5 + rng.random((7, 1)) * 0.5
    found = mean(losses.ravel(), np.repeat(np.arange(7), 30))
    by_day = losses.mean(axis=1)
    assert found.error == pytest.approx(scipy.stats.sem(by_day))
    expected = scipy.stats.t.interval(0.95, 6, by_day.mean(), scipy.stats.sem(by_day))
    assert (found.low, found.high) == pytest.approx(expected)


def test_with_too_few_days_rows_are_taken_as_independent():
    losses = np.linspace(0, 1, 40)
    label = losses > 0.3
    for number in (1, MIN_DAYS - 1):
        days = np.arange(40) % number
        assert mean(losses, days) == mean(losses)
        assert auc(losses, label, days) == auc(losses, label)
        assert rate(label, days) == rate(label)
    assert mean(losses, np.arange(40) % MIN_DAYS) != mean(losses)


@pytest.mark.parametrize(("true", "of"), [(3, 10), (0, 25), (25, 25), (150, 600)])
def test_the_rate_of_independent_rows_has_wilsons_interval(true, of):
    found = rate(np.arange(of) < true)
    expected = scipy.stats.binomtest(true, of).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_rate_of_days_counts_as_fewer_rows():
    days = np.repeat(np.arange(8), 50)
    label = np.arange(400) % 50 < np.repeat([5, 10, 15, 20, 25, 10, 5, 30], 50)
    found = rate(label, days)
    shares = np.array([5, 10, 15, 20, 25, 10, 5, 30]) / 50
    effective = 0.3 * 0.7 / scipy.stats.sem(shares) ** 2
    assert effective == pytest.approx(49)  # of 400
    # Wilson's ends are where the share is just so many standard errors away, by the ends' own standard error.
    for end in (found.low, found.high):
        assert abs(0.3 - end) == pytest.approx(scipy.stats.t.ppf(0.975, 7) * math.sqrt(end * (1 - end) / effective))


def test_days_that_happen_to_be_alike_never_count_as_more_rows_than_there_are():
    days = np.repeat(np.arange(8), 50)
    label = np.arange(400) % 50 < np.repeat([15, 15, 15, 15, 15, 15, 16, 14], 50)
    alone = rate(label)
    assert mean(label.astype(float), days).error < 0.2 * mean(label.astype(float)).error
    assert rate(label, days).low <= alone.low
    assert rate(label, days).high >= alone.high


@given(rows)
def test_the_interval_of_an_auc_with_days_adds_up_pairs_by_day(some):
    score, label, days = columns(some)
    found = auc(score, label, days)
    m, n, number = label.sum(), (~label).sum(), len(set(days))
    if min(m, n) < 2 or number < MIN_DAYS:
        assert found == auc(score, label)
        return
    order = np.array([[(p > q) + 0.5 * (p == q) for q in score[~label]] for p in score[label]])
    area = order.mean()
    variance = 0.0
    for day in set(days):
        positives = (order[days[label] == day].mean(axis=1) - area).sum() / m
        negatives = (order[:, days[~label] == day].mean(axis=0) - area).sum() / n
        variance += (positives + negatives) ** 2 * number / (number - 1)
    half = scipy.stats.t.ppf(0.975, number - 1) * math.sqrt(variance)
    assert found.low == pytest.approx(max(area - half, 0), abs=1e-9)
    assert found.high == pytest.approx(min(area + half, 1), abs=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_claim_when_days_differ():
    """Days differ in their rate and in how well they are told apart; the truth is that of all days there could be."""
    rng = np.random.default_rng(5)
    days = np.repeat(np.arange(10), 80)
    # A positive row scores N(1 + u, 1), u ~ N(0, 0.6) by day, a negative one N(0, 1).
    truth = {"auc": scipy.stats.norm.cdf(1 / math.sqrt(2 + 0.36)), "brier": 0.3 * 0.49 + 0.7 * 0.09, "rate": 0.3}
    held = dict.fromkeys(truth, 0)
    taken_as_independent = dict.fromkeys(truth, 0)
    for _ in range(400):
        label = rng.random(800) < np.repeat(rng.beta(6, 14, 10), 80)
        score = rng.normal(size=800) + label * np.repeat(rng.normal(1, 0.6, 10), 80)
        square = (label - 0.3) ** 2
        for name, found, alone in (
            ("auc", auc(score, label, days), auc(score, label)),
            ("brier", mean(square, days), mean(square)),
            ("rate", rate(label, days), rate(label)),
        ):
            held[name] += found.low <= truth[name] <= found.high
            taken_as_independent[name] += alone.low <= truth[name] <= alone.high
    assert all(within(times, 400, 0.95) for times in held.values()), held
    assert max(taken_as_independent.values()) < 0.8 * 400


@pytest.mark.parametrize("number", [1, 2, MIN_DAYS - 1])
def test_few_days_know_from_the_gate_how_much_days_differ(number):
    """The gate's ten days say what one day is off by; taken as independent, rows of few days claim far too much."""
    rng = np.random.default_rng(17)
    truth = scipy.stats.norm.cdf(1 / math.sqrt(2 + 0.36))

    def drawn(days, rows):
        """A positive row scores N(1 + u, 1), u ~ N(0, 0.6) by day, a negative one N(0, 1)."""
        of = np.repeat(np.arange(days), rows)
        label = rng.random(days * rows) < 0.3
        return rng.normal(size=days * rows) + label * rng.normal(1, 0.6, days)[of], label, of

    held = alone = 0
    for _ in range(400):
        scatter = auc_scatter(*drawn(10, 200))
        score, label, days = drawn(number, 600)
        found = auc(score, label, days)
        wide = scatter.widen(found, number)
        held += wide.low <= truth <= wide.high
        alone += found.low <= truth <= found.high
    # The gate's ten days are themselves a draw: 95 % holds in about 95 %, not exactly.
    assert 0.92 * 400 < held < 0.99 * 400, held
    assert alone < 0.6 * 400


def test_the_scatter_between_days_is_what_their_rows_do_not_explain():
    rng = np.random.default_rng(3)
    days = np.repeat(np.arange(400), 200)
    label = rng.random(days.size) < 0.3
    u = rng.normal(1, 0.6, 400)
    score = rng.normal(size=days.size) + label * u[days]
    # Of many days the AUC of one, given its u, is Phi(u / sqrt 2) against all negatives: its deviation is that of those.
    expected = scipy.stats.norm.cdf(u / math.sqrt(2)).std(ddof=1)
    found = auc_scatter(score, label, days)
    assert found.error == pytest.approx(expected, rel=0.1)
    assert found.freedom == 399
    alike = auc_scatter(rng.normal(size=days.size) + label, label, days)
    assert alike.error < 0.03
    assert auc_scatter(score[:400], label[:400], days[:400]) is None


def test_intervals_by_day_hold_the_truth_when_days_do_not_differ():
    rng = np.random.default_rng(6)
    days = np.arange(400) % 8
    truth = scipy.stats.norm.cdf(1 / math.sqrt(2))
    held = dict.fromkeys(METRICS, 0)
    for _ in range(400):
        label = rng.random(400) < 0.3
        # Calibrated: the probability of being positive given the value is what the score says.
        value = rng.normal(size=400) + label
        score = 1 / (1 + np.exp(-(value - 0.5 + math.log(3 / 7))))
        found = measure(score, label, days)
        held["auc"] += found["auc"].low <= truth <= found["auc"].high
        held["positive_rate"] += found["positive_rate"].low <= 0.3 <= found["positive_rate"].high
    assert within(held["auc"], 400, 0.95)
    # Days that happen to be alike never count as more rows than there are, so here it holds a little more often.
    assert held["positive_rate"] >= scipy.stats.binom.ppf(0.0005, 400, 0.95)


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(some, dice):
    other = dice.sample(some, len(some))
    one, two = measure(*columns(some)), measure(*columns(other))
    for name in METRICS:
        assert vars(one[name]) == pytest.approx(vars(two[name]), nan_ok=True, abs=1e-9)


@given(rows)
def test_an_interval_holds_its_value_and_stays_where_the_metric_can_be(some):
    for name, found in measure(*columns(some)).items():
        if math.isfinite(found.low):
            assert 0 <= found.low <= found.value <= found.high
            assert found.high <= (math.inf if name == "log_loss" else 1)


def test_without_rows_nothing_is_told_and_with_one_no_interval():
    nothing = measure(np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=np.int64))
    assert all(math.isnan(v) for found in nothing.values() for v in (found.value, found.low, found.high))
    one = measure(np.array([0.25]), np.array([True]), np.array([3]))
    assert math.isnan(one["auc"].value)
    assert one["log_loss"].value == pytest.approx(math.log(4))
    assert math.isnan(one["log_loss"].low)
    assert one["brier"].value == pytest.approx(0.75**2)
    assert one["positive_rate"].high == 1


def test_days_are_utc_days_and_rows_without_a_time_share_one():
    moment = datetime(2013, 3, 9, 23, 59, tzinfo=UTC)
    times = pl.Series([moment, moment + timedelta(minutes=1), moment - timedelta(hours=20), None, None])
    found = days_of(times.dt.convert_time_zone("America/New_York"))
    assert list(found[:3] - found[0]) == [0, 1, 0]
    assert found[3] == found[4] != found[0]
