from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec import RolloutPolicy
from rollout.judge import T_QUANTILE, binomial_p_value, disagreement_bound, fisher_p_value, judge
from rollout.observation import LATENCY_EDGES_MS, NO_LATENCIES, ArmObservation, failed, scored
from validation.verdict import Status

POLICY = RolloutPolicy()


def calls(
    count: int, latency_ms: float = 1.0, score: float = 0.3, champion: float | None = None, errors: int = 0
) -> ArmObservation:
    """One-row calls, of which some fail."""
    one = scored(np.array([score]), latency_ms, None if champion is None else np.array([champion]))
    return sum([one] * (count - errors) + [failed(1)] * errors, ArmObservation())


BASELINE = calls(1_000)


def test_a_canary_like_the_champion_advances():
    decision = judge(BASELINE, calls(200, champion=0.3), POLICY)
    assert (decision.action, decision.verdict.status) == ("advance", Status.PASS)


def test_no_data_at_all_holds():
    decision = judge(ArmObservation(), ArmObservation(), POLICY)
    assert (decision.action, decision.verdict.status) == ("hold", Status.INCONCLUSIVE)


def test_one_request_too_few_holds_and_the_next_one_advances():
    assert judge(BASELINE, calls(99, champion=0.3), POLICY).action == "hold"
    assert judge(BASELINE, calls(100, champion=0.3), POLICY).action == "advance"


def test_a_canary_without_a_baseline_holds():
    assert judge(ArmObservation(), calls(500, champion=0.3), POLICY).action == "hold"


def test_a_canary_that_was_never_compared_with_the_champion_holds():
    assert judge(BASELINE, calls(500), POLICY).action == "hold"


def test_a_canary_that_always_raises_is_rolled_back_after_twenty_requests():
    assert judge(BASELINE, calls(19, errors=19), POLICY).action == "hold"
    decision = judge(BASELINE, calls(20, errors=20), POLICY)
    assert decision.action == "rollback"
    assert "100.0%" in decision.verdict.reason


def test_a_few_errors_that_may_be_chance_hold():
    # 4 of 100 against 5 of 1000: 3.5 points more, but Fisher's p is about 0.005.
    decision = judge(calls(1_000, errors=5), calls(100, champion=0.3, errors=4), POLICY)
    assert (decision.action, decision.verdict.status) == ("hold", Status.INCONCLUSIVE)


def test_a_significant_but_tiny_rise_of_errors_is_tolerated():
    baseline, canary = calls(20_000, errors=20), calls(20_000, champion=0.3, errors=100)
    assert fisher_p_value(20, 20_000, 100, 20_000) < 1e-9
    assert judge(baseline, canary, POLICY).action == "advance"


def test_a_single_nan_is_a_failure_of_the_canary():
    canary = calls(10_000, champion=0.3) + scored(np.array([np.nan]), 1.0, np.array([0.3]))
    decision = judge(BASELINE, canary, POLICY)
    assert decision.action == "rollback"
    assert "1 of 10001" in decision.verdict.reason


def test_a_call_that_raises_is_one_error_however_many_rows_it_had():
    batch = scored(np.full(20, 0.3), 1.0, np.full(20, 0.3))
    decision = judge(sum([batch] * 50, ArmObservation()), batch + batch + batch + failed(20), POLICY)
    assert (decision.action, decision.verdict.status) == ("hold", Status.INCONCLUSIVE)
    assert "25.0% of 4 against 0.0% of 50 (p 0.074)" in decision.verdict.reason
    raising = sum([batch] * 15 + [failed(20)] * 5, ArmObservation())
    assert judge(sum([batch] * 100, ArmObservation()), raising, POLICY).action == "rollback"


@pytest.mark.parametrize(("errors", "action"), [(30, "hold"), (55, "hold"), (90, "rollback")])
def test_a_champion_that_is_ill_holds_a_canary_unless_that_is_worse(errors, action):
    decision = judge(calls(1_000, errors=100), calls(500, champion=0.3, errors=errors), POLICY)
    assert (decision.action, decision.verdict.status) == (action, Status.ERROR if action == "hold" else Status.FAIL)
    assert "10.0%" in decision.verdict.reason


@pytest.mark.parametrize(
    "canary",
    [calls(200, errors=200), calls(200, score=math.nan), calls(200, score=0.9, champion=0.3), calls(200, 500.0)],
    ids=["raising", "nan", "inverted", "slow"],
)
def test_a_champion_that_is_a_little_ill_shields_no_bad_canary(canary):
    assert judge(calls(1_000, errors=21), canary, POLICY).action == "rollback"


def test_a_canary_with_more_invalid_scores_than_a_champion_that_has_some_too_is_rolled_back():
    def invalid(share_pct: int) -> ArmObservation:
        return calls(1_000 - 10 * share_pct, champion=0.3) + calls(10 * share_pct, score=math.nan)

    assert judge(invalid(1), invalid(2), POLICY).action == "advance"
    assert judge(invalid(1), invalid(20), POLICY).action == "rollback"
    assert judge(invalid(10), invalid(10), POLICY).verdict.status is Status.ERROR


def test_a_slow_canary_is_rolled_back_before_it_has_all_its_requests():
    decision = judge(BASELINE, calls(20, latency_ms=30.0, champion=0.3), POLICY)
    assert decision.action == "rollback"


def test_three_times_as_slow_is_nothing_below_the_floor():
    assert judge(calls(1_000, latency_ms=1.0), calls(500, latency_ms=3.0, champion=0.3), POLICY).action == "advance"


def test_one_spike_in_a_hundred_calls_is_what_a_p99_allows():
    canary = calls(199, champion=0.3) + calls(1, latency_ms=500.0, champion=0.3)
    assert judge(BASELINE, canary, POLICY).action == "advance"


def test_one_call_in_twenty_that_is_slow_is_found():
    canary = calls(190, champion=0.3) + calls(10, latency_ms=500.0, champion=0.3)
    decision = judge(BASELINE, canary, POLICY)
    assert decision.action == "rollback"
    assert "10 of 200" in decision.verdict.reason


def test_slow_calls_that_may_be_chance_hold():
    canary = calls(146, champion=0.3) + calls(4, latency_ms=500.0, champion=0.3)
    decision = judge(BASELINE, canary, POLICY)
    assert (decision.action, decision.verdict.status) == ("hold", Status.INCONCLUSIVE)
    assert "4 of 150" in decision.verdict.reason


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_a_canary_as_fast_as_the_champion_is_hardly_ever_suspected(sigma, share):
    """How often "may still be chance" holds a healthy canary, in 4000 judgements at each of 60, 100, 150, 200, 300 calls.

    At worst 0.00 % at sigma 1.0 and 0.43 % at sigma 1.5, where P99 is 33 times the median, with arms of equal size; with
    three suspect calls instead of four it were 0.33 % and 1.67 %. Beyond what is promised here, at sigma 2.0: 1.25 %.
    """
    random = np.random.default_rng(0)
    policy = POLICY.model_copy(update={"min_requests": 60})

    def arm(count: int) -> ArmObservation:
        buckets = np.searchsorted(LATENCY_EDGES_MS, random.lognormal(np.log(20.0), sigma, count))
        counts = np.bincount(buckets, minlength=len(NO_LATENCIES))
        return ArmObservation(requests=count, latency_counts=tuple(counts.tolist()), pairs=count)

    judged = [
        judge(arm(int(count / share)), arm(count), policy).verdict.status
        for count in (60, 100, 150, 200, 300)
        for _ in range(200)
    ]
    assert judged.count(Status.PASS) > 0.99 * len(judged)


def test_a_canary_as_slow_as_a_slow_champion_advances():
    assert judge(calls(1_000, latency_ms=80.0), calls(200, latency_ms=90.0, champion=0.3), POLICY).action == "advance"


def test_scores_that_are_all_wrong_roll_back_from_twenty_pairs():
    assert judge(BASELINE, calls(19, score=0.95, champion=0.3), POLICY).action == "hold"
    decision = judge(BASELINE, calls(20, score=0.95, champion=0.3), POLICY)
    assert decision.action == "rollback"
    assert "0.650" in decision.verdict.reason


def test_a_mean_difference_that_may_be_chance_holds():
    # Half of the rows differ by 0 and half by 0.32: mean 0.16, s about 0.16, bound below 0.15.
    canary = calls(100, champion=0.3) + calls(100, score=0.62, champion=0.3)
    decision = judge(BASELINE, canary, POLICY)
    assert (decision.action, decision.verdict.status) == ("hold", Status.INCONCLUSIVE)


def test_the_t_quantile_is_that_of_the_fewest_pairs():
    assert pytest.approx(scipy.stats.t.ppf(0.999, 19), abs=1e-3) == T_QUANTILE


@given(st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=2, max_size=60))
def test_the_bound_is_the_mean_less_standard_errors(apart):
    canary = scored(np.array(apart), 1.0, np.zeros(len(apart)))
    expected = np.mean(apart) - T_QUANTILE * scipy.stats.sem(apart)
    assert disagreement_bound(canary) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 300), st.integers(0, 300), st.data())
def test_the_error_test_is_fishers(baseline, canary, data):
    baseline_errors = data.draw(st.integers(0, baseline))
    canary_errors = data.draw(st.integers(0, canary))
    table = [[canary_errors, canary - canary_errors], [baseline_errors, baseline - baseline_errors]]
    found = fisher_p_value(baseline_errors, baseline, canary_errors, canary)
    assert found == pytest.approx(scipy.stats.fisher_exact(table, alternative="greater").pvalue, abs=1e-9)


@given(st.integers(0, 500), st.data(), st.sampled_from([0.01, 0.2, 0.5]))
def test_the_latency_test_is_binomial(trials, data, probability):
    successes = data.draw(st.integers(0, trials))
    expected = scipy.stats.binom.sf(successes - 1, trials, probability)
    assert binomial_p_value(successes, trials, probability) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_more_canary_errors_never_make_it_look_better(canary, few, more):
    few, more = sorted((min(few, canary), min(more, canary)))
    order = {"advance": 0, "hold": 1, "rollback": 2}
    good = judge(BASELINE, calls(canary, champion=0.3, errors=few), POLICY)
    worse = judge(BASELINE, calls(canary, champion=0.3, errors=more), POLICY)
    assert order[good.action] <= order[worse.action]


def test_every_number_of_a_verdict_is_a_number():
    decision = judge(BASELINE, calls(200, champion=0.3), POLICY)
    assert decision.verdict.measurements
    assert all(math.isfinite(value) for value in decision.verdict.measurements.values())
