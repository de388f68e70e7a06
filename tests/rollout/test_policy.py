from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.spec import RolloutPolicy
from rollout.judge import CanaryDecision
from rollout.ledger import Entry, Model
from rollout.policy import next_step
from validation.verdict import Status, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RolloutPolicy(steps_pct=(10.0, 50.0), max_step_s=120.0)
PASS = CanaryDecision("advance", Verdict(Status.PASS, "fine"))
HOLD = CanaryDecision("hold", Verdict(Status.INCONCLUSIVE, "too few"))
ILL = CanaryDecision("hold", Verdict(Status.ERROR, "champion ill"))
FAIL = CanaryDecision("rollback", Verdict(Status.FAIL, "bad"))


def canary(share_pct: float) -> Entry:
    return Entry("flights", 2, START, "start", Model("1", "a"), Model("2", "b"), share_pct, "", None)


@pytest.mark.parametrize(
    ("share_pct", "decision", "waited_s", "action", "next_pct"),
    [
        (10.0, PASS, 5, "advance", 50.0),
        (50.0, PASS, 5, "promote", 0.0),
        (30.0, PASS, 5, "advance", 50.0),
        (10.0, HOLD, 119.9, "hold", 10.0),
        (10.0, HOLD, 120.0, "rollback", 0.0),
        (50.0, FAIL, 0, "rollback", 0.0),
        (10.0, ILL, 119.9, "hold", 10.0),
        (10.0, ILL, 120.0, "rollback", 0.0),
        (10.0, PASS, 10_000, "advance", 50.0),
    ],
)
def test_a_step_follows_from_share_decision_and_time(share_pct, decision, waited_s, action, next_pct):
    step = next_step(canary(share_pct), decision, POLICY, START + timedelta(seconds=waited_s))
    assert (step.action, step.share_pct) == (action, next_pct)


def test_a_step_that_took_too_long_says_how_long_and_why():
    step = next_step(canary(10.0), HOLD, POLICY, START + timedelta(seconds=130))
    assert step.reason == "inconclusive for 130 s (limit 120 s): too few"


def test_a_champion_that_stays_unwell_ends_the_canary_and_asks_for_a_person():
    step = next_step(canary(10.0), ILL, POLICY, START + timedelta(seconds=130))
    assert step.reason == (
        "not judged for 130 s (limit 120 s), as the champion is unwell and a person has to look: champion ill"
    )
