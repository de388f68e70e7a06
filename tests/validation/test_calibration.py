from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.calibration import MAX_KNOTS, Calibration, calibrate


def steps(*parts):
    """Rows by part: (score, rows, how many are true), all of one day."""
    score = np.concatenate([np.full(n, s) for s, n, _ in parts])
    label = np.concatenate([np.arange(n) < k for _, n, k in parts])
    return score, label, np.zeros(score.size, dtype=np.int64)


def of_days(rng, days, rows, odds):
    """Rows of four scores whose labels are drawn from a chance that moves by day: beta with the score as mean."""
    score = np.tile([0.1, 0.3, 0.6, 0.9], days * rows // 4)
    day = np.repeat(np.arange(days), rows)
    if odds is None:
        return score, rng.random(score.size) < score, day
    moved = rng.normal(0, odds, days)[day]
    return score, rng.random(score.size) < 1 / (1 + np.exp(-(np.log(score / (1 - score)) + moved))), day


def test_each_score_is_worth_the_share_of_its_rows_that_is_true():
    found = calibrate(*steps((0.2, 300, 30), (0.6, 200, 120)))
    assert found.scores == pytest.approx((0.2, 0.6))
    assert found.probabilities == pytest.approx((0.1, 0.6))
    assert (found.rows, found.days, found.lowest, found.highest) == (500, 1, 0.2, 0.6)
    # Halfway between the knots it is halfway between their shares, and beyond them it is level.
    assert found.probability(np.array([0.0, 0.2, 0.4, 0.6, 1.0])) == pytest.approx([0.1, 0.1, 0.35, 0.6, 0.6])


def test_shares_that_fall_are_pooled():
    found = calibrate(*steps((0.2, 100, 50), (0.4, 100, 30), (0.6, 300, 270)))
    assert found.scores == pytest.approx((0.3, 0.6))
    assert found.probabilities == pytest.approx((0.4, 0.9))


def test_the_error_of_a_knot_is_that_of_a_share():
    found = calibrate(*steps((0.2, 300, 30), (0.6, 200, 120)))
    share = 30.5 / 301
    assert found.covariance[0][0] == pytest.approx(share * (1 - share) / 300)
    assert found.covariance[0][1] == found.day_correlation == 0


@pytest.mark.parametrize("odds", [None, 0.7])
def test_knots_scatter_as_much_as_the_covariance_says(odds):
    rng = np.random.default_rng(2)
    found = [calibrate(*of_days(rng, 40, 40, odds)) for _ in range(300)]
    assert all(len(c.scores) == 4 for c in found)
    shares = np.array([c.probabilities for c in found])
    claimed = np.mean([np.diag(c.covariance) for c in found], axis=0)
    assert np.sqrt(claimed) == pytest.approx(shares.std(axis=0, ddof=1), rel=0.2)
    together = np.mean([c.covariance[0][3] for c in found])
    assert together == pytest.approx(np.cov(shares.T)[0, 3], abs=0.3 * claimed.max())


def test_rows_of_a_day_that_err_together_count_as_fewer():
    """The design effect of clusters of one size: 1 + (rows of a cluster - 1) times their correlation."""
    score, label, day = of_days(np.random.default_rng(7), 40, 40, 1.5)
    found = calibrate(score, label, day)
    assert found.day_correlation > 0.05
    for knot, own in enumerate(np.unique(score)):
        share = (label[score == own].sum() + 0.5) / 401
        expected = share * (1 - share) / 400 * (1 + 9 * found.day_correlation)
        assert found.covariance[knot][knot] == pytest.approx(expected)


def test_the_correlation_of_a_day_is_found_and_is_none_where_there_is_none():
    rng = np.random.default_rng(3)
    # Of shares drawn from beta(a, b) by day, two labels of a day correlate by 1 / (a + b + 1).
    day = np.repeat(np.arange(400), 50)
    label = rng.random(day.size) < rng.beta(3, 6, 400)[day]
    assert calibrate(np.full(day.size, 0.3), label, day).day_correlation == pytest.approx(0.1, abs=0.02)
    assert calibrate(*of_days(rng, 400, 48, None)).day_correlation < 0.003


def test_the_correlation_is_right_on_average_when_days_are_few():
    rng = np.random.default_rng(6)
    day = np.repeat(np.arange(8), 200)
    found = [
        calibrate(np.full(day.size, 0.3), rng.random(day.size) < rng.beta(3, 6, 8)[day], day).day_correlation
        for _ in range(400)
    ]
    # The curve has followed the days' mean; left out, that would make it 0.085.
    assert np.mean(found) == pytest.approx(0.1, abs=0.01)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(500, 4_000), st.sampled_from([2, 5, 1_000_000]))
def test_the_curve_rises_is_bounded_and_keeps_the_mean(seed, rows, distinct):
    rng = np.random.default_rng(seed)
    score = np.floor(rng.random(rows) * distinct) / distinct
    label, day = rng.random(rows) < rng.random() * 0.8 + 0.1, rng.integers(0, 9, rows)
    found = calibrate(score, label, day)
    assert len(found.scores) <= MAX_KNOTS
    assert np.diff(found.scores).min(initial=1) > 0
    assert np.diff(found.probabilities).min(initial=1) > 0
    given = found.probability(score)
    assert 0 <= given.min() <= given.max() <= 1
    assert np.linalg.eigvalsh(np.array(found.covariance)).min() > -1e-12
    order = rng.permutation(rows)
    again = calibrate(score[order], label[order], day[order])
    assert again.probabilities == pytest.approx(found.probabilities)


def test_the_pull_of_a_knot_is_what_a_sum_moves_when_the_knot_moves():
    rng = np.random.default_rng(4)
    score, label, day = rng.random(3_000), rng.random(3_000) < 0.4, rng.integers(0, 9, 3_000)
    found = calibrate(score, label | (score > 0.7), day)
    other, weight = np.append(rng.random(200), [0.0, 1.0]), rng.normal(size=202)
    pulls = found.pull(other, weight)
    for knot in range(len(found.scores)):
        moved = list(found.probabilities)
        moved[knot] += 0.01
        shifted = np.interp(other, found.scores, moved) - found.probability(other)
        assert pulls[knot] == pytest.approx((weight * shifted).sum() / 0.01)


def test_scores_all_the_same_are_worth_the_rate():
    found = calibrate(*steps((0.3, 600, 150)))
    assert found.probabilities == (0.25,)
    assert found.probability(np.array([0.0, 0.3, 1.0])).tolist() == [0.25] * 3
    assert found.pull(np.array([0.1, 0.9]), np.array([1.0, 2.0])).tolist() == [3.0]


@pytest.mark.parametrize(
    "rows",
    [
        steps((0.2, 499, 100)),
        steps((0.2, 600, 9)),
        steps((0.2, 600, 591)),
        steps((0.2, 600, 100), (1.2, 1, 1)),
        steps((0.2, 600, 100), (math.nan, 1, 1)),
        (np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)),
    ],
)
def test_where_there_is_too_little_to_learn_from_there_is_no_curve(rows):
    assert calibrate(*rows) is None


def test_it_survives_json_and_stays_small_however_many_rows_it_was_learned_from():
    rng = np.random.default_rng(5)
    score = rng.random(200_000)
    found = calibrate(score, rng.random(score.size) < score, rng.integers(0, 28, score.size))
    assert len(found.scores) == MAX_KNOTS
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert len(text) < 40_000
    again = Calibration.from_dict(json.loads(text))
    assert (again.scores, again.probabilities, again.days) == (found.scores, found.probabilities, found.days)
    assert np.array(again.covariance) == pytest.approx(np.array(found.covariance), rel=1e-5)
