from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.spec import PerformancePolicy
from validation.metrics import DayScatter
from validation.performance import auc, log_loss, measure_performance
from validation.verdict import Status

POLICY = PerformancePolicy(min_rows=500, max_auc_drop=0.05)
START = datetime(2013, 3, 1, tzinfo=UTC)


def predictions(seed=1, rows=2000, signal=1.0, minutes=15):
    """Scores of a probit model with that much signal, its AUC is Phi(signal / sqrt 2); a row every so many minutes."""
    rng = np.random.default_rng(seed)
    label = rng.random(rows) < 0.3
    z = rng.normal(size=rows) + signal * label
    return pl.DataFrame(
        {
            "score": 1 / (1 + np.exp(1.3 - z)),
            "label": label,
            "event_timestamp": [START + timedelta(minutes=minutes * i) for i in range(rows)],
        }
    )


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.booleans()),
    min_size=1,
    max_size=60,
)


def arrays(pairs):
    return np.array([s for s, _ in pairs], dtype=float), np.array([y for _, y in pairs], dtype=bool)


@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_counted_half(pairs):
    score, label = arrays(pairs)
    wins = [(p > n) + 0.5 * (p == n) for p in score[label] for n in score[~label]]
    found = auc(score, label)
    if not wins:
        assert math.isnan(found.value)
    else:
        assert found.value == pytest.approx(sum(wins) / len(wins))


@given(scored)
def test_the_interval_is_delongs_computed_pair_by_pair(pairs):
    score, label = arrays(pairs)
    m, n = label.sum(), (~label).sum()
    found = auc(score, label)
    if min(m, n) < 2:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        return
    order = np.array([[(p > q) + 0.5 * (p == q) for q in score[~label]] for p in score[label]])
    half = 1.959964 * math.sqrt(order.mean(axis=1).var(ddof=1) / m + order.mean(axis=0).var(ddof=1) / n)
    assert found.low == pytest.approx(max(order.mean() - half, 0), abs=1e-6)
    assert found.high == pytest.approx(min(order.mean() + half, 1), abs=1e-6)


@settings(max_examples=30)
@given(scored)
def test_numbers_agree_with_scikit_learn(pairs):
    from sklearn import metrics

    score, label = arrays(pairs)
    assert log_loss(score, label) == pytest.approx(metrics.log_loss(label, score, labels=[False, True]))
    if label.any() and not label.all():
        assert auc(score, label).value == pytest.approx(metrics.roc_auc_score(label, score))


def test_the_interval_holds_the_truth_about_as_often_as_it_claims():
    truth = 0.5 * (1 + math.erf(0.5))  # Phi(1 / sqrt 2)
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        label = rng.random(400) < 0.3
        found = auc(rng.normal(size=400) + label, label)
        held += found.low <= truth <= found.high
    # 95 % of 400 is 380; three standard deviations are 13.
    assert 367 <= held <= 393


def test_log_loss_and_brier_by_hand():
    frame = pl.DataFrame({"score": [0.8, 0.4], "label": [True, False], "event_timestamp": [START, START]})
    found = measure_performance(frame, 0.8, POLICY)
    assert found.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert found.brier == pytest.approx((0.04 + 0.16) / 2)
    assert (found.labelled_rows, found.positive_rate, found.auc) == (2, 0.5, 1.0)
    assert found.verdict.status is Status.INCONCLUSIVE


def test_a_certain_score_that_is_wrong_costs_much_and_not_infinitely():
    assert 30 < log_loss(np.array([0.0, 1.0]), np.array([True, False])) < 40


def test_a_model_as_good_as_expected_passes_with_its_numbers():
    found = measure_performance(predictions(), 0.76, POLICY)
    assert found.verdict.status is Status.PASS
    assert found.auc_low < found.auc < found.auc_high
    assert f"AUC {found.auc:.3f} ({found.auc_low:.3f} to {found.auc_high:.3f}) on 2000 labelled rows" in (
        found.verdict.reason
    )
    assert found.verdict.measurements["auc"] == found.auc
    assert (found.first_event, found.last_event) == (START, START + timedelta(minutes=15 * 1999))


def test_a_model_that_lost_its_signal_fails():
    found = measure_performance(predictions(signal=0.0), 0.76, POLICY)
    assert found.verdict.status is Status.FAIL
    assert found.auc_high < 0.71
    assert "below the line 0.710 (expected 0.760 - 0.05)" in found.verdict.reason


def test_a_drop_that_the_interval_does_not_confirm_is_inconclusive():
    frame = predictions(rows=600)
    found = measure_performance(frame, None, POLICY)
    expected = (found.auc + found.auc_high) / 2 + POLICY.max_auc_drop
    again = measure_performance(frame, expected, POLICY)
    assert again.verdict.status is Status.INCONCLUSIVE
    assert "more labels will tell" in again.verdict.reason


def test_a_drop_smaller_than_the_policy_allows_passes():
    found = measure_performance(predictions(), None, POLICY)
    assert measure_performance(predictions(), found.auc + 0.049, POLICY).verdict.status is Status.PASS


def test_every_metric_comes_with_its_interval():
    found = measure_performance(predictions(), 0.76, POLICY)
    for name in ("auc", "log_loss", "brier", "positive_rate"):
        one = found.intervals[name]
        assert one.low < one.value < one.high
        assert (one.value, one.low) == (getattr(found, name), found.verdict.measurements[f"{name}_low"])
        assert one.high == found.verdict.measurements[f"{name}_high"]


def week(bad_days):
    """Seven days of 300 rows; on some the model has no idea."""
    return pl.concat(
        predictions(seed=day, rows=300, signal=-1.0 if day in bad_days else 1.0, minutes=1).with_columns(
            pl.col("event_timestamp") + timedelta(days=day)
        )
        for day in range(7)
    )


def test_two_bad_days_are_no_proof_and_a_week_of_them_is():
    """Taken as independent, their rows would prove a drop: a confident alarm about two days of weather."""
    one = measure_performance(week({3, 5}), 0.76, POLICY)
    assert auc(week({3, 5})["score"].to_numpy(), week({3, 5})["label"].to_numpy()).high < 0.71
    assert one.verdict.status is Status.INCONCLUSIVE
    assert "on 2100 labelled rows of 7 days is below" in one.verdict.reason
    assert one.days == 7
    assert measure_performance(week(set(range(7))), 0.76, POLICY).verdict.status is Status.FAIL
    assert measure_performance(week(set()), 0.76, POLICY).verdict.status is Status.PASS


def first_day(signal, seed=4):
    """What a new champion has after a day: 691 rows."""
    return predictions(seed=seed, rows=691, signal=signal, minutes=1)


def test_a_bad_first_day_of_a_champion_is_no_proof():
    """Taken as independent, its rows would prove a drop: a false critical alert on the day after each promotion."""
    day = first_day(signal=0.3)
    assert auc(day["score"].to_numpy(), day["label"].to_numpy()).high < 0.7
    weathery = DayScatter(error=0.07, freedom=6)
    found = measure_performance(day, 0.75, POLICY, scatter=weathery)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "on 691 labelled rows of 1 day, taken to differ as those of its gate did, is below" in found.verdict.reason
    assert found.auc_high > 0.7
    # Of a pipeline whose days hardly differ the same day is one.
    calm = measure_performance(day, 0.75, POLICY, scatter=DayScatter(error=0.005, freedom=6))
    assert calm.verdict.status is Status.FAIL
    # And a model that says the opposite of what it should needs no week to be found out.
    assert measure_performance(first_day(signal=-1.5), 0.75, POLICY, scatter=weathery).verdict.status is Status.FAIL


def test_few_days_prove_nothing_where_nobody_knows_how_much_days_differ():
    found = measure_performance(first_day(signal=0.0), 0.75, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "of 1 day is below the line 0.700" in found.verdict.reason
    assert "fewer than 5 days prove nothing; more labels will tell" in found.verdict.reason
    assert measure_performance(first_day(signal=1.0), 0.75, POLICY).verdict.status is Status.PASS


def test_days_enough_speak_for_themselves():
    whole = week({3, 5})
    scatter = DayScatter(error=0.3, freedom=6)
    assert measure_performance(whole, 0.76, POLICY, scatter=scatter) == measure_performance(whole, 0.76, POLICY)


@pytest.mark.parametrize("expected", [None, math.nan])
def test_without_an_expectation_it_measures_and_does_not_judge(expected):
    found = measure_performance(predictions(), expected, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.expected_auc is None
    assert 0.7 < found.auc < 0.8


def test_labels_that_have_not_come_are_counted_and_not_guessed():
    frame = predictions(rows=1500).with_columns(
        label=pl.when(pl.int_range(pl.len()) < 1100).then("label"),
    )
    found = measure_performance(frame, 0.76, POLICY)
    assert (found.labelled_rows, found.unlabelled_rows) == (1100, 400)
    assert found.auc == measure_performance(frame.head(1100), 0.76, POLICY).auc
    assert found.last_event == START + timedelta(minutes=15 * 1099)


def test_few_labels_are_inconclusive_however_bad_they_look():
    found = measure_performance(predictions(rows=499, signal=-3.0), 0.76, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "499 labelled rows, fewer than the 500" in found.verdict.reason


@pytest.mark.parametrize("positives", [0, 9, 991, 1000])
def test_too_few_of_one_class_are_inconclusive(positives):
    frame = predictions(rows=1000).with_columns(label=pl.int_range(pl.len()) < positives)
    found = measure_performance(frame, 0.76, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert f"{positives} of 1000 labels are true" in found.verdict.reason


def test_rows_without_a_finite_score_are_left_out_and_counted():
    frame = predictions(rows=1000)
    holes = pl.when(pl.int_range(pl.len()) < 3).then(pl.Series([None, math.nan, math.inf] + [0.0] * 997, strict=False))
    found = measure_performance(frame.with_columns(score=holes.otherwise("score")), 0.76, POLICY)
    assert (found.unscored_rows, found.labelled_rows) == (3, 997)
    assert found.auc == measure_performance(frame.tail(997), 0.76, POLICY).auc


@pytest.mark.parametrize(
    ("holes", "status"), [(50, Status.PASS), (51, Status.INCONCLUSIVE), (900, Status.INCONCLUSIVE)]
)
@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_a_model_that_often_has_no_score_never_passes(holes, status, hole):
    frame = predictions(rows=1000).with_columns(
        score=pl.when(pl.int_range(pl.len()) < holes).then(pl.lit(hole, dtype=pl.Float64)).otherwise("score")
    )
    found = measure_performance(frame, 0.76, POLICY)
    assert found.verdict.status is status
    if status is Status.INCONCLUSIVE:
        assert f"{holes} of 1000 labelled rows have no finite score, more than 5%" in found.verdict.reason


def test_scores_missing_where_no_label_has_come_do_not_count():
    frame = predictions(rows=1000)
    waiting = frame.with_columns(score=pl.lit(None, dtype=pl.Float64), label=pl.lit(None, dtype=pl.Boolean))
    assert measure_performance(pl.concat([frame, waiting]), 0.76, POLICY).verdict.status is Status.PASS


def test_scores_that_are_no_probabilities_are_an_error():
    found = measure_performance(predictions().with_columns(pl.col("score") * 10), 0.76, POLICY)
    assert found.verdict.status is Status.ERROR
    assert "no probabilities" in found.verdict.reason
    assert math.isnan(found.log_loss)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop("score"), "lack the columns ['score']"),
        (lambda f: f.drop("label"), "lack the columns ['label']"),
        (lambda f: f.with_columns(pl.col("score").cast(pl.String)), "'score' is String"),
        (lambda f: f.with_columns(pl.col("label").cast(pl.Int8)), "'label' is Int8"),
        (lambda f: f.with_columns(event_timestamp=pl.lit("today")), "'event_timestamp' is String"),
    ],
)
def test_a_frame_that_cannot_be_judged_is_an_error_with_the_reason(change, told):
    found = measure_performance(change(predictions()), 0.76, POLICY)
    assert found.verdict.status is Status.ERROR
    assert told in found.verdict.reason
    assert math.isnan(found.auc)


@pytest.mark.parametrize(
    "frame",
    [
        predictions().clear(),
        predictions().with_columns(label=pl.lit(None)),
        predictions().with_columns(score=pl.lit(None)),
        predictions().with_columns(score=pl.lit(math.nan)),
    ],
)
def test_nothing_to_measure_is_inconclusive(frame):
    found = measure_performance(frame, 0.76, POLICY)
    assert found.verdict.status is Status.INCONCLUSIVE
    assert (found.labelled_rows, found.first_event) == (0, None)
    assert all(math.isnan(v) for v in (found.auc, found.log_loss, found.brier, found.positive_rate))


def test_the_same_score_for_everyone_is_worth_one_half():
    found = measure_performance(predictions().with_columns(score=pl.lit(0.3)), 0.76, POLICY)
    assert found.auc == 0.5
    assert found.verdict.status is Status.FAIL
