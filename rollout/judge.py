"""Is the canary fit to take more traffic? Pure: counts in, decision out.

A check fails only when it finds an effect beyond the policy *and* chance is no explanation, the two things that canary
judges such as kayenta ask for. The judge looks at growing data every second, and each look is another chance to be
fooled, so its significance level is strict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pipelines.spec import RolloutPolicy
from rollout.observation import ArmObservation
from validation.verdict import Status, Verdict, worst

SIGNIFICANCE = 0.001
# No verdict but INCONCLUSIVE on fewer requests, calls or pairs.
MIN_EVIDENCE = 20
# One-sided 99.9 % quantile of Student's t with 19 degrees of freedom: right for the fewest pairs, cautious for more.
T_QUANTILE = 3.579
# Below this, P99 is made by the scheduler and the garbage collector: 1 ms against 3 ms is a ratio of 3 and no loss.
LATENCY_FLOOR_MS = 5.0
# So many calls beyond the latency limit, and twice the share that a P99 allows, are no proof, but too many to pass.
SUSPECT_CALLS, SUSPECT_SHARE = 4, 0.02

ACTIONS: Mapping[Status, Literal["advance", "hold", "rollback"]] = MappingProxyType(
    {Status.PASS: "advance", Status.INCONCLUSIVE: "hold", Status.ERROR: "hold", Status.FAIL: "rollback"}
)


@dataclass(frozen=True)
class CanaryDecision:
    """What to do with the canary, and the verdict that says why."""

    action: Literal["advance", "hold", "rollback"]
    verdict: Verdict


def judge(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> CanaryDecision:
    """Compare the canary with the champion over one step.

    Args:
        baseline: what the champion did since the step began.
        canary: what the challenger did in the same time.
        policy: what is tolerated.

    Returns:
        advance (PASS), hold (INCONCLUSIVE: too little was seen; ERROR: the champion itself is unwell, so being no worse
        proves nothing), or rollback (FAIL, also beside an unwell champion).
    """
    verdict = worst(
        check(baseline, canary, policy) for check in (_requests, _invalid, _errors, _latency, _disagreement)
    )
    if verdict.status is not Status.FAIL:
        verdict = _baseline_illness(baseline, policy) or verdict
    return CanaryDecision(ACTIONS[verdict.status], verdict)


def fisher_p_value(baseline_errors: int, baseline_trials: int, canary_errors: int, canary_trials: int) -> float:
    """How probable at least as many canary errors are if both arms fail alike.

    One-sided exact test of a two-by-two table: the upper tail of the hypergeometric distribution (Fisher 1935, The
    Design of Experiments, section 21). 1.0 without canary trials.
    """
    population, errors, drawn = baseline_trials + canary_trials, baseline_errors + canary_errors, canary_trials
    every = _log_choose(population, drawn)
    return _probability(
        math.exp(_log_choose(errors, k) + _log_choose(population - errors, drawn - k) - every)
        for k in range(max(canary_errors, drawn - (population - errors)), min(errors, drawn) + 1)
    )


def binomial_p_value(successes: int, trials: int, probability: float) -> float:
    """How probable at least that many successes are: the upper tail of the binomial distribution."""
    hit, miss = math.log(probability), math.log1p(-probability)
    return _probability(
        math.exp(_log_choose(trials, k) + k * hit + (trials - k) * miss) for k in range(successes, trials + 1)
    )


def disagreement_bound(canary: ArmObservation) -> float:
    """Lower 99.9 % confidence bound of the mean disagreement: mean - t * s / sqrt(n); nan with fewer than two pairs."""
    n = canary.pairs
    if n < 2:
        return math.nan
    variance = max(canary.disagreement_squares - canary.disagreement_sum**2 / n, 0.0) / (n - 1)
    return canary.mean_disagreement - T_QUANTILE * math.sqrt(variance / n)


def _baseline_illness(baseline: ArmObservation, policy: RolloutPolicy) -> Verdict | None:
    limit = policy.max_error_rate_increase
    for what, errors, trials in (
        ("calls", baseline.failed_calls, baseline.attempts),
        ("scores", baseline.invalid, baseline.requests),
    ):
        if trials >= MIN_EVIDENCE and errors / trials > limit:
            return Verdict(
                Status.ERROR,
                f"the champion itself fails {errors / trials:.1%} of {trials} {what} (> {limit:.1%}): "
                "nothing sound to compare with",
                {"baseline_error_rate": errors / trials, f"baseline_{what}": float(trials)},
            )
    return None


def _requests(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> Verdict:
    seen = {"baseline_requests": float(baseline.requests), "canary_requests": float(canary.requests)}
    if canary.requests < policy.min_requests:
        reason = f"{canary.requests} canary requests, {policy.min_requests} are needed"
        return Verdict(Status.INCONCLUSIVE, reason, seen)
    if baseline.requests < MIN_EVIDENCE:
        reason = f"{baseline.requests} champion requests to compare with, {MIN_EVIDENCE} are needed"
        return Verdict(Status.INCONCLUSIVE, reason, seen)
    return Verdict(Status.PASS, f"{canary.requests} canary requests against {baseline.requests}", seen)


def _invalid(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> Verdict:
    """NaN is a defect of the model, not noise: one is enough, as after a promotion nobody stands in for it."""
    if canary.invalid and not baseline.invalid:
        reason = f"{canary.invalid} of {canary.requests} canary scores are NaN or outside 0..1, the champion's are not"
        return Verdict(Status.FAIL, reason, {"canary_invalid": float(canary.invalid), "baseline_invalid": 0.0})
    return _rise("invalid", (baseline.invalid, baseline.requests), (canary.invalid, canary.requests), policy)


def _errors(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> Verdict:
    """The rows of a call fail together when it raises: one cause, and so one error, however many they are."""
    before, after = (baseline.failed_calls, baseline.attempts), (canary.failed_calls, canary.attempts)
    return _rise("error", before, after, policy)


def _rise(what: str, before: tuple[int, int], after: tuple[int, int], policy: RolloutPolicy) -> Verdict:
    """Whether the canary's rate is too far above the champion's; each is given as (errors, trials)."""
    if not before[1] or not after[1]:
        return Verdict(Status.INCONCLUSIVE, f"no requests to take an {what} rate of")
    baseline_rate, canary_rate = before[0] / before[1], after[0] / after[1]
    p_value = fisher_p_value(*before, *after)
    seen = {
        f"baseline_{what}_rate": baseline_rate,
        f"canary_{what}_rate": canary_rate,
        f"{what}_rate_p_value": p_value,
    }
    reason = (
        f"canary {what} rate {canary_rate:.1%} of {after[1]} against {baseline_rate:.1%} of {before[1]} "
        f"(p {p_value:.2g})"
    )
    if canary_rate - baseline_rate <= policy.max_error_rate_increase:
        return Verdict(Status.PASS, reason, seen)
    beyond = f"{reason}, more than {policy.max_error_rate_increase:.1%} above"
    if after[1] >= MIN_EVIDENCE and p_value < SIGNIFICANCE:
        return Verdict(Status.FAIL, beyond, seen)
    return Verdict(Status.INCONCLUSIVE, f"{beyond}, which may still be chance", seen)


def _latency(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> Verdict:
    """A P99 is one call in a hundred, so it is tested as such: are too many canary calls slower than the limit?

    The limit is the champion's P99 (at least the floor) times the policy's ratio. If the canary's true P99 were at the
    limit, 1 % of its calls would be slower; a binomial test says whether so many slower ones can be that.
    """
    if baseline.calls < MIN_EVIDENCE or canary.calls < MIN_EVIDENCE:
        reason = (
            f"{canary.calls} canary and {baseline.calls} champion calls were timed, {MIN_EVIDENCE} of each are needed"
        )
        return Verdict(Status.INCONCLUSIVE, reason)
    limit_ms = policy.max_latency_ratio * max(baseline.latency_p99_ms, LATENCY_FLOOR_MS)
    slower = canary.calls_slower_than(limit_ms)
    p_value = binomial_p_value(slower, canary.calls, 0.01)
    seen = {
        "baseline_latency_p99_ms": baseline.latency_p99_ms,
        "canary_latency_p99_ms": canary.latency_p99_ms,
        "latency_p_value": p_value,
    }
    reason = (
        f"{slower} of {canary.calls} canary calls took longer than {limit_ms:.1f} ms "
        f"(P99 {canary.latency_p99_ms:.1f} ms against {baseline.latency_p99_ms:.1f} ms, p {p_value:.2g})"
    )
    if p_value < SIGNIFICANCE:
        return Verdict(Status.FAIL, reason, seen)
    if slower >= SUSPECT_CALLS and slower / canary.calls > SUSPECT_SHARE:
        return Verdict(Status.INCONCLUSIVE, f"{reason}, which may still be chance", seen)
    return Verdict(Status.PASS, reason, seen)


def _disagreement(baseline: ArmObservation, canary: ArmObservation, policy: RolloutPolicy) -> Verdict:  # noqa: ARG001
    """Both models score the canary's rows, so row by row differences are left and few rows tell a lot."""
    if canary.pairs < MIN_EVIDENCE:
        reason = f"{canary.pairs} rows were scored by both models, {MIN_EVIDENCE} are needed"
        return Verdict(Status.INCONCLUSIVE, reason)
    mean, bound = canary.mean_disagreement, disagreement_bound(canary)
    seen = {"mean_disagreement": mean, "disagreement_lower_bound": bound, "pairs": float(canary.pairs)}
    reason = f"scores differ by {mean:.3f} in the mean of {canary.pairs} rows (at least {bound:.3f} with 99.9 %)"
    if mean <= policy.max_disagreement:
        return Verdict(Status.PASS, reason, seen)
    beyond = f"{reason}, more than {policy.max_disagreement:.3f}"
    if bound > policy.max_disagreement:
        return Verdict(Status.FAIL, beyond, seen)
    return Verdict(Status.INCONCLUSIVE, f"{beyond}, which may still be chance", seen)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _probability(terms: Iterable[float]) -> float:
    return min(math.fsum(terms), 1.0)
