"""Moves traffic: releases a challenger, judges it step by step, promotes it or rolls it back.

Everything that is known lies in the ledger, and every change is one appended entry that names its predecessor. So a
controller may be killed at any line and started again, and two of them at once do no harm: the slower one's entry no
longer follows the latest, is refused, and it goes on from what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    *,
    by_hand: bool = False,
) -> Entry:
    """Start the challenger's canary; the very first model, or any if the policy has no steps, is promoted at once.

    Args:
        ledger: where it is written down.
        pipeline: whose traffic.
        challenger: the model to release.
        policy: its first share, and the length of the lease.
        reason: why, for the record.
        as_of: the time this release belongs to when history is replayed, for the record; None = live.
        now: wall clock, UTC.
        by_hand: a person asks for it, so a version that was rolled back is released again; otherwise it stays back.

    Returns:
        The entry in force: a new one, or the one there is if the model serves already, is in its canary, or stays back.

    Raises:
        ConflictError: another challenger is in its canary, or another controller wrote first.
    """
    state = ledger.state(pipeline)
    if state is None or state.champion is None:
        return ledger.append(_after(state, pipeline, "promote", challenger, None, 0.0, reason, as_of, now))
    if challenger == state.champion or (not by_hand and was_rolled_back(ledger.history(pipeline), challenger)):
        return state
    if not policy.steps_pct and state.challenger is None:
        return ledger.append(_after(state, pipeline, "promote", challenger, None, 0.0, reason, as_of, now))
    if state.challenger not in (None, challenger):
        raise ConflictError(
            f"challenger {state.challenger.version!r} of pipeline {pipeline!r} is in its canary at "
            f"{state.share_pct:g} % since {state.at.isoformat()}; wait until it is promoted, or roll it back, "
            f"before releasing {challenger.version!r}"
        )
    if state.challenger == challenger:
        return state  # with its lease as it is, by which `run_rollout` knows whether somebody watched it
    # The lease comes first: a canary whose controller dies before the next line is never left without one.
    ledger.renew_lease(pipeline, now + timedelta(seconds=policy.lease_s))
    share_pct = min(policy.steps_pct)
    return ledger.append(_after(state, pipeline, "start", state.champion, challenger, share_pct, reason, as_of, now))


def rollback(ledger: Ledger, pipeline: str, reason: str, now: datetime) -> Entry:
    """Roll back by hand: the canary if there is one, otherwise the champion to the one that served before it.

    Returns:
        The entry in force: a new one, or the latest if it is this very call's (same reason, same `now`).

    Raises:
        UsageError: nothing serves, nothing served before, or the latest entry is a rollback for the same reason: a
            second try at it cannot be told from the wish to return further.
        ConflictError: a controller wrote first; ask again.
    """
    history = ledger.history(pipeline)
    state = history[-1] if history else None
    if state is None or state.champion is None:
        raise UsageError(
            f"pipeline {pipeline!r} has no champion, so there is nothing to roll back; release a model first"
        )
    if state.action == "rollback" and state.reason == reason:
        if state.at == now:
            return state
        raise UsageError(
            f"pipeline {pipeline!r} was rolled back for the reason {reason!r} already: version "
            f"{state.champion.version!r} serves since {state.at.isoformat()}; give another reason to return further"
        )
    champion = state.champion if state.challenger else _earlier_champion(history)
    if champion is None:
        raise UsageError(
            f"{state.champion.version!r} is the first champion of pipeline {pipeline!r}: there is none to return to; "
            "release another model instead"
        )
    return ledger.append(_after(state, pipeline, "rollback", champion, None, 0.0, reason, state.as_of, now))


def observe(ledger: Ledger, state: Entry, policy: RolloutPolicy) -> CanaryDecision:
    """Judge the canary of that entry on what replicas answered under it: their clocks and the ledger's may differ."""
    if state.champion is None or state.challenger is None:
        raise UsageError(f"pipeline {state.pipeline!r} has no canary to judge; release a challenger first")
    baseline = ledger.observations(state.pipeline, state.champion.version, state.sequence)
    canary = ledger.observations(state.pipeline, state.challenger.version, state.sequence)
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

    A canary that nobody watched until its lease ran out begins its step anew, with an entry of its own: the time in which
    routers gave it nothing is no time in which it proved nothing.

    Args:
        ledger: what is in force, and what was observed.
        pipeline: whose canary.
        policy: the pipeline's.
        now: wall clock, UTC.
        sleep: called with `poll_s` between two judgements.
        on_entry: called with the entry found and each that follows, up to the one returned; after a restart it hears
            the latest one again.

    Returns:
        The entry that ended the canary found at the start, even if another release followed at once; the latest entry
        if there was no canary.

    Raises:
        UsageError: nothing was ever released.
        UnreachableError: the ledger does not answer. The lease then runs out and routers return to the champion.
    """
    state = ledger.state(pipeline)
    if state is None:
        raise UsageError(f"nothing was ever released for pipeline {pipeline!r}; release a model first")
    on_entry(state)
    released = state.challenger
    while state.challenger is not None:
        at = now()
        # The entry comes before the lease: a controller that dies in between leaves a lapsed lease, and so another entry.
        found = _begin_anew(ledger, state, at) if _unwatched(ledger, state, policy, at) else state
        ledger.renew_lease(pipeline, at + timedelta(seconds=policy.lease_s))
        if found.sequence == state.sequence:
            found = reconcile(ledger, state, observe(ledger, state, policy), policy, at)
        if found.sequence == state.sequence:
            sleep(policy.poll_s)
            found = ledger.state(pipeline) or state  # a person may have rolled back by hand
        # More than one entry may have come meanwhile: sequences have no gaps, so these are all of them.
        for entry in ledger.history(pipeline)[state.sequence : found.sequence] if found != state else ():
            on_entry(entry)
            if entry.challenger != released:
                return entry
        state = found
    return state


def was_rolled_back(history: Sequence[Entry], model: Model) -> bool:
    """Whether that version was last taken out of service by a rollback, and did not come back since."""
    return rolled_back_by(history, model.version) is not None


def rolled_back_by(history: Sequence[Entry], version: str) -> Entry | None:
    """The rollback that last took that version out of service; None if it serves, or did not leave by one.

    Args:
        history: a pipeline's entries, oldest first.
        version: the version in question; where its bundle lies does not matter.
    """
    for before, after in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
        if _takes_part(after, version):
            return None
        if _takes_part(before, version):
            return after if after.action == "rollback" else None
    return None


def _takes_part(entry: Entry, version: str) -> bool:
    return any(m is not None and m.version == version for m in (entry.champion, entry.challenger))


def _unwatched(ledger: Ledger, state: Entry, policy: RolloutPolicy, now: datetime) -> bool:
    """Whether the lease ran out more than a poll ago; a poll alone may outlast it, if the policy says so."""
    until = ledger.lease_until(state.pipeline)
    return until is None or now > until + timedelta(seconds=policy.poll_s)


def _begin_anew(ledger: Ledger, state: Entry, now: datetime) -> Entry:
    """The entry once more, as of now; or the one of somebody who came first."""
    reason = "taken up again: nobody had judged it since its lease ran out"
    try:
        return ledger.append(replace(state, sequence=state.sequence + 1, at=now, reason=reason))
    except ConflictError:
        return ledger.state(state.pipeline) or state


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
