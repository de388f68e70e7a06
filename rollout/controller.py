"""Moves traffic: releases a challenger, judges it step by step, promotes it or rolls it back.

Everything that is known lies in the ledger, and every change is one appended entry that names its predecessor. So a
controller may be killed at any line and started again, and two of them at once do no harm: the slower one's entry no
longer follows the latest, is refused, and it goes on from what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from perennial.errors import ConflictError, UsageError
from pipelines.spec import RolloutPolicy
from rollout.judge import CanaryDecision, judge
from rollout.ledger import Action, Entry, Ledger, Model
from rollout.policy import next_step


def release(
    ledger: Ledger,
    pipeline: str,
    challenger: Model,
    policy: RolloutPolicy,
    reason: str,
    as_of: datetime | None,
    now: datetime,
) -> Entry:
    """Start the challenger's canary; the very first model, or any if the policy has no steps, is promoted at once.

    Args:
        ledger: where it is written down.
        pipeline: whose traffic.
        challenger: the model to release.
        policy: its first share, and the length of the lease.
        reason: why, for the record.
        as_of: the time this release belongs to when history is replayed; None = live. A release of the same model with
            the same `as_of` is the same release: asking again after it was rolled back does not start it anew.
        now: wall clock, UTC.

    Returns:
        The entry in force: a new one, or the one there is if this release was made before.

    Raises:
        ConflictError: another challenger is in its canary, or another controller wrote first.
    """
    state = ledger.state(pipeline)
    if state is None or state.champion is None or (not policy.steps_pct and state.challenger is None):
        return ledger.append(_after(state, pipeline, "promote", challenger, None, 0.0, reason, as_of, now))
    if challenger == state.champion or _was_rolled_back(ledger.history(pipeline), challenger, as_of):
        return state
    if state.challenger not in (None, challenger):
        raise ConflictError(
            f"challenger {state.challenger.version!r} of pipeline {pipeline!r} is in its canary at "
            f"{state.share_pct:g} % since {state.at.isoformat()}; wait until it is promoted, or roll it back, "
            f"before releasing {challenger.version!r}"
        )
    # The lease comes first: a canary whose controller dies before the next line is never left without one.
    ledger.renew_lease(pipeline, now + timedelta(seconds=policy.lease_s))
    if state.challenger == challenger:
        return state
    share_pct = min(policy.steps_pct)
    return ledger.append(_after(state, pipeline, "start", state.champion, challenger, share_pct, reason, as_of, now))


def rollback(ledger: Ledger, pipeline: str, reason: str, now: datetime) -> Entry:
    """Roll back by hand: the canary if there is one, otherwise the champion to the one that served before it.

    Returns:
        The entry in force; asking again with the same reason changes nothing.

    Raises:
        UsageError: nothing serves, or nothing served before.
        ConflictError: a controller wrote first; ask again.
    """
    history = ledger.history(pipeline)
    state = history[-1] if history else None
    if state is None or state.champion is None:
        raise UsageError(
            f"pipeline {pipeline!r} has no champion, so there is nothing to roll back; release a model first"
        )
    if state.action == "rollback" and state.reason == reason:
        return state
    champion = state.champion if state.challenger else _earlier_champion(history)
    if champion is None:
        raise UsageError(
            f"{state.champion.version!r} is the first champion of pipeline {pipeline!r}: there is none to return to; "
            "release another model instead"
        )
    return ledger.append(_after(state, pipeline, "rollback", champion, None, 0.0, reason, state.as_of, now))


def observe(ledger: Ledger, state: Entry, policy: RolloutPolicy) -> CanaryDecision:
    """Judge the canary of that entry on what was observed since its step began."""
    if state.champion is None or state.challenger is None:
        raise UsageError(f"pipeline {state.pipeline!r} has no canary to judge; release a challenger first")
    baseline = ledger.observations(state.pipeline, state.champion.version, state.at)
    canary = ledger.observations(state.pipeline, state.challenger.version, state.at)
    return judge(baseline, canary, policy)


def reconcile(ledger: Ledger, state: Entry, decision: CanaryDecision, policy: RolloutPolicy, now: datetime) -> Entry:
    """Write down what follows from a decision.

    Args:
        ledger: where it is written down.
        state: the entry that was judged; a decision on it is void once another one is in force.
        decision: the judge's.
        policy: the shares to go through.
        now: wall clock, UTC.

    Returns:
        The entry in force afterwards: a new one, the same one on hold, or another writer's that came first.
    """
    step = next_step(state, decision, policy, now)
    if step.action == "hold":
        return state
    champion = state.challenger if step.action == "promote" else state.champion
    challenger = state.challenger if step.action == "advance" else None
    entry = _after(
        state, state.pipeline, step.action, champion, challenger, step.share_pct, step.reason, state.as_of, now
    )
    try:
        return ledger.append(entry)
    except ConflictError:
        return ledger.state(state.pipeline) or state


def run_rollout(
    ledger: Ledger,
    pipeline: str,
    policy: RolloutPolicy,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    on_entry: Callable[[Entry], None],
) -> Entry:
    """Renew the lease, judge, reconcile, until the canary is promoted or rolled back.

    Args:
        ledger: what is in force, and what was observed.
        pipeline: whose canary.
        policy: the pipeline's.
        now: wall clock, UTC.
        sleep: called with `poll_s` between two judgements.
        on_entry: called with the entry found and each that follows; after a restart it hears the latest one again.

    Returns:
        The entry that ended the canary, or the latest one if there is none.

    Raises:
        UsageError: nothing was ever released.
        UnreachableError: the ledger does not answer. The lease then runs out and routers return to the champion.
    """
    state = ledger.state(pipeline)
    if state is None:
        raise UsageError(f"nothing was ever released for pipeline {pipeline!r}; release a model first")
    on_entry(state)
    released = state.challenger
    while state.challenger is not None and state.challenger == released:
        at = now()
        ledger.renew_lease(pipeline, at + timedelta(seconds=policy.lease_s))
        found = reconcile(ledger, state, observe(ledger, state, policy), policy, at)
        if found.sequence == state.sequence:
            sleep(policy.poll_s)
            found = ledger.state(pipeline) or state  # a person may have rolled back by hand
        if found.sequence != state.sequence:
            on_entry(found)
        state = found
    return state


def _after(
    state: Entry | None,
    pipeline: str,
    action: Action,
    champion: Model | None,
    challenger: Model | None,
    share_pct: float,
    reason: str,
    as_of: datetime | None,
    now: datetime,
) -> Entry:
    sequence = state.sequence + 1 if state else 1
    return Entry(pipeline, sequence, now, action, champion, challenger, share_pct, reason, as_of)


def _was_rolled_back(history: Sequence[Entry], challenger: Model, as_of: datetime | None) -> bool:
    if as_of is None or history[-1].action != "rollback" or len(history) < 2:
        return False
    return challenger in (history[-2].challenger, history[-2].champion) and history[-2].as_of == as_of


def _earlier_champion(history: Sequence[Entry]) -> Model | None:
    """The champion before the current one, leaving out those that were rolled back themselves."""
    served: list[Model] = []
    for entry in history:
        if entry.champion is None or served[-1:] == [entry.champion]:
            continue
        if entry.action == "rollback":
            served.pop()
        else:
            served.append(entry.champion)
    return served[-2] if len(served) > 1 else None
