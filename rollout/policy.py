"""Where a canary goes from here. Pure: the entry in force, a decision and the time in, the next step out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipelines.spec import RolloutPolicy
from rollout.judge import CanaryDecision
from rollout.ledger import Entry
from validation.verdict import Status


@dataclass(frozen=True)
class Step:
    """What the ledger should say next; "hold" = what it says already."""

    action: Literal["hold", "advance", "promote", "rollback"]
    share_pct: float
    reason: str


def next_step(state: Entry, decision: CanaryDecision, policy: RolloutPolicy, now: datetime) -> Step:
    """The step that follows.

    Args:
        state: the entry in force, with a challenger; its `at` is when the step began.
        decision: the judge's, on what was observed since then.
        policy: the shares to go through, and how long a step may stay without a sound judgement.
        now: UTC.

    Returns:
        rollback on a failure, or when a step stayed inconclusive or its champion unwell (ERROR) for `max_step_s`: the
        champion then serves alone, as before the release; the next larger share on a pass, and promote after the last;
        else hold.
    """
    reason = decision.verdict.reason
    if decision.action == "rollback":
        return Step("rollback", 0.0, reason)
    if decision.action == "advance":
        larger = [share for share in sorted(policy.steps_pct) if share > state.share_pct]
        return Step("advance", larger[0], reason) if larger else Step("promote", 0.0, reason)
    waited_s = (now - state.at).total_seconds()
    if waited_s >= policy.max_step_s:
        waited = f"for {waited_s:.0f} s (limit {policy.max_step_s:.0f} s)"
        if decision.verdict.status is Status.ERROR:
            return Step(
                "rollback", 0.0, f"not judged {waited}, as the champion is unwell and a person has to look: {reason}"
            )
        return Step("rollback", 0.0, f"inconclusive {waited}: {reason}")
    return Step("hold", state.share_pct, reason)
