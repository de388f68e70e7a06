from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollout.observation import LATENCY_EDGES_MS, ArmObservation, failed, is_valid, scored

# Dyadic numbers: their sums are exact, so that equality means equality.
SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.5, 1.5, math.nan])
CALLS = st.one_of(
    st.builds(failed, st.integers(0, 50)),
    st.builds(
        lambda rows, latency: scored(
            np.array([a for a, _ in rows]), latency, np.array([b for _, b in rows]) if rows else np.empty(0)
        ),
        st.lists(st.tuples(SCORES, SCORES), max_size=8),
        st.floats(0.01, 20_000),
    ),
)


@given(st.lists(CALLS, max_size=8), st.randoms())
def test_observations_add_up_in_any_order_and_grouping(calls, random):
    shuffled = random.sample(calls, len(calls))
    cut = random.randint(0, len(calls))
    apart = sum(shuffled[:cut], ArmObservation()) + sum(shuffled[cut:], ArmObservation())
    assert apart == sum(calls, ArmObservation())


def test_nothing_observed_has_no_rates():
    nothing = ArmObservation()
    for value in (nothing.error_rate, nothing.latency_p99_ms, nothing.mean_disagreement, nothing.mean_score):
        assert math.isnan(value)


def test_one_call_is_counted_by_hand():
    observed = scored(np.array([0.5, 0.75, np.nan, 1.5]), 3.0, np.array([0.25, 0.25, 0.5, 0.5]))
    assert (observed.requests, observed.errors, observed.invalid, observed.calls) == (4, 2, 2, 1)
    assert observed.pairs == 2
    assert observed.mean_disagreement == (0.25 + 0.5) / 2
    assert observed.disagreement_squares == 0.25**2 + 0.5**2
    assert observed.mean_score == (0.5 + 0.75) / 2
    assert observed.error_rate == 0.5


def test_an_invalid_score_of_the_champion_makes_no_pair():
    observed = scored(np.array([0.5, 0.5]), 1.0, np.array([np.nan, 0.5]))
    assert (observed.pairs, observed.errors) == (1, 0)


def test_a_model_that_raised_failed_every_row_and_has_no_latency():
    observed = failed(7)
    assert (observed.requests, observed.errors, observed.invalid, observed.calls) == (7, 7, 0, 0)
    assert (observed.failed_calls, observed.attempts) == (1, 1)


def test_valid_scores_are_probabilities():
    scores = np.array([0.0, 1.0, 0.5, -1e-9, 1 + 1e-9, np.nan, np.inf, -np.inf])
    assert is_valid(scores).tolist() == [True, True, True, False, False, False, False, False]


@given(st.lists(st.floats(0.2, 9_000), min_size=1, max_size=300))
def test_p99_is_within_a_quarter_of_the_99th_percentile(latencies):
    observed = sum((scored(np.array([0.5]), ms, None) for ms in latencies), ArmObservation())
    exact = float(np.percentile(latencies, 99, method="inverted_cdf"))
    assert exact / 1.25 <= observed.latency_p99_ms <= exact * 1.25


@given(st.lists(st.floats(0.01, 20_000), max_size=50), st.floats(0.05, 15_000))
def test_slow_calls_are_never_counted_too_many_and_are_missed_by_one_bucket_at_most(latencies, limit):
    observed = sum((scored(np.array([0.5]), ms, None) for ms in latencies), ArmObservation())
    slower = observed.calls_slower_than(limit)
    assert slower <= sum(ms > limit for ms in latencies)
    assert slower >= sum(
        ms > max(limit, LATENCY_EDGES_MS[0]) * 1.2501 for ms in latencies if limit < LATENCY_EDGES_MS[-1]
    )
