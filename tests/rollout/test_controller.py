from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perennial.errors import ConflictError, UsageError
from pipelines.spec import RolloutPolicy
from rollout.controller import observe, reconcile, release, rollback, run_rollout, was_rolled_back
from rollout.judge import CanaryDecision
from rollout.ledger import Entry, Ledger, Model
from rollout.observation import ObservationRow, failed, scored
from validation.verdict import Status, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
POLICY = RolloutPolicy(steps_pct=(10.0, 50.0), min_requests=100, poll_s=1.0, max_step_s=30.0, lease_s=20.0)
V1, V2, V3 = (Model(v, f"file:///models/{v}") for v in "123")
PASS = CanaryDecision("advance", Verdict(Status.PASS, "fine"))
HOLD = CanaryDecision("hold", Verdict(Status.INCONCLUSIVE, "too few"))
FAIL = CanaryDecision("rollback", Verdict(Status.FAIL, "bad"))


class World:
    """A clock that sleeping advances, and traffic that comes in while the controller sleeps."""

    def __init__(self, url: str, requests_per_s: int = 60, broken: bool = False) -> None:
        self.ledger = Ledger(url)
        self.time = START
        self.flush = 0
        self.requests_per_s = requests_per_s
        self.broken = broken

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        state = self.ledger.state("flights")
        assert state is not None
        if state.challenger is None or state.champion is None:
            return
        self.flush += 1
        call = scored(np.array([0.5]), 1.0, np.array([0.5]))
        canary = _times(failed(1) if self.broken else call, self.requests_per_s)
        for model, seen in ((state.champion, call), (state.challenger, canary)):
            baseline = seen if model == state.challenger else _times(seen, 100)
            key = ("flights", state.sequence, model.version, "replica", self.flush)
            self.ledger.add_observations([ObservationRow(*key, self.time, baseline)])

    def release(self, ledger: Any, challenger: Model) -> Entry:
        return release(ledger, "flights", challenger, POLICY, "drift", AS_OF, self.now())

    def run(self, ledger: Any, on_entry: Callable[[Entry], None] = lambda _: None) -> Entry:
        return run_rollout(ledger, "flights", POLICY, self.now, self.sleep, on_entry)


def _times(call: Any, count: int) -> Any:
    total = call
    for _ in range(count - 1):
        total += call
    return total


@pytest.fixture
def world(tmp_path):
    made = World(f"sqlite:///{tmp_path / 'ledger.db'}")
    made.release(made.ledger, V1)
    yield made
    made.ledger.close()


def story(ledger: Ledger) -> list[tuple[str, str | None, str | None, float]]:
    """What happened, without times and reasons."""
    return [
        (e.action, e.champion and e.champion.version, e.challenger and e.challenger.version, e.share_pct)
        for e in ledger.history("flights")
    ]


def test_the_first_model_is_promoted_at_once(world):
    assert story(world.ledger) == [("promote", "1", None, 0.0)]


def test_a_good_challenger_goes_through_the_steps_and_is_promoted(world):
    world.release(world.ledger, V2)
    heard = []
    last = world.run(world.ledger, heard.append)
    assert story(world.ledger)[1:] == [
        ("start", "1", "2", 10.0),
        ("advance", "1", "2", 50.0),
        ("promote", "2", None, 0.0),
    ]
    assert heard == world.ledger.history("flights")[1:]
    assert last == heard[-1]
    assert last.as_of == AS_OF


def test_a_broken_challenger_is_rolled_back_with_the_reason(world):
    world.broken = True
    world.release(world.ledger, V2)
    last = world.run(world.ledger)
    assert story(world.ledger)[1:] == [("start", "1", "2", 10.0), ("rollback", "1", None, 0.0)]
    assert "canary error rate 100.0%" in last.reason


def test_a_canary_that_gets_no_traffic_is_rolled_back_when_its_time_is_up(world):
    world.requests_per_s = 1
    world.release(world.ledger, V2)
    last = world.run(world.ledger)
    assert last.action == "rollback"
    assert last.at - START == timedelta(seconds=POLICY.max_step_s)
    assert last.reason.startswith("inconclusive for 30 s")


def test_the_lease_is_renewed_as_long_as_somebody_watches(world):
    world.requests_per_s = 1
    world.release(world.ledger, V2)
    assert world.ledger.lease_until("flights") == START + timedelta(seconds=20)
    leases = []
    slept = world.sleep

    def sleep(seconds: float) -> None:
        leases.append(world.ledger.lease_until("flights") - world.now())
        slept(seconds)

    run_rollout(world.ledger, "flights", POLICY, world.now, sleep, lambda _: None)
    assert len(leases) == 30
    assert set(leases) == {timedelta(seconds=20)}


def test_releasing_the_same_challenger_again_changes_nothing(world):
    started = world.release(world.ledger, V2)
    world.time += timedelta(seconds=5)
    assert world.release(world.ledger, V2) == started
    assert world.ledger.lease_until("flights") == START + timedelta(seconds=20)


def test_a_canary_that_nobody_watched_begins_its_step_anew(world):
    """Its controller was killed after the first step; the scheduled run comes ten minutes later."""
    started = world.release(world.ledger, V2)
    reconcile(world.ledger, started, PASS, POLICY, world.now())
    world.time += timedelta(minutes=10)
    world.release(world.ledger, V2)
    assert world.run(world.ledger).action == "promote"
    assert [action for action, *_ in story(world.ledger)] == ["promote", "start", "advance", "advance", "promote"]
    anew = world.ledger.history("flights")[3]
    assert (anew.share_pct, anew.at) == (50.0, START + timedelta(minutes=10))
    assert anew.reason == "taken up again: nobody had judged it since its lease ran out"


def test_a_canary_whose_lease_lives_is_not_begun_anew(world):
    world.requests_per_s = 1
    world.release(world.ledger, V2)
    world.time += timedelta(seconds=19)
    assert world.run(world.ledger).at == START + timedelta(seconds=30)
    assert [action for action, *_ in story(world.ledger)] == ["promote", "start", "rollback"]


def test_a_controller_that_was_asleep_itself_begins_the_step_anew(world):
    world.release(world.ledger, V2)
    nights = iter([3600.0])

    def sleep(seconds: float) -> None:
        world.time += timedelta(seconds=next(nights, 0.0))
        world.sleep(seconds)

    assert run_rollout(world.ledger, "flights", POLICY, world.now, sleep, lambda _: None).action == "promote"


def test_a_poll_longer_than_the_lease_does_not_begin_anew_for_ever(world):
    world.requests_per_s = 1
    world.release(world.ledger, V2)
    policy = POLICY.model_copy(update={"poll_s": 25.0})
    assert run_rollout(world.ledger, "flights", policy, world.now, world.sleep, lambda _: None).action == "rollback"
    assert [action for action, *_ in story(world.ledger)] == ["promote", "start", "rollback"]


def test_of_two_controllers_that_take_a_canary_up_one_writes(world):
    world.release(world.ledger, V2)
    world.time += timedelta(minutes=10)

    class Raced:
        """Another controller comes first, just before this one's first entry."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.ledger, name)

        def append(self, entry: Entry) -> Entry:
            if entry.sequence == 3:
                world.ledger.append(replace(entry, reason="the other one's"))
            return world.ledger.append(entry)

    heard: list[Entry] = []
    assert world.run(Raced(), heard.append).action == "promote"
    assert heard == world.ledger.history("flights")[1:]
    assert [e.reason for e in heard][1] == "the other one's"
    assert [action for action, *_ in story(world.ledger)] == ["promote", "start", "start", "advance", "promote"]


def test_releasing_what_serves_already_changes_nothing(world):
    assert world.release(world.ledger, V1) == world.ledger.state("flights")
    assert len(world.ledger.history("flights")) == 1


def test_two_challengers_at_once_are_a_conflict_that_names_both(world):
    world.release(world.ledger, V2)
    with pytest.raises(ConflictError, match=r"challenger '2' .* at 10 % since .* before releasing '3'"):
        world.release(world.ledger, V3)


@pytest.mark.parametrize("served", [False, True], ids=["as challenger", "as champion"])
def test_a_version_that_was_rolled_back_stays_back_unless_a_person_releases_it(world, served):
    world.release(world.ledger, V2)
    if served:
        assert world.run(world.ledger).champion == V2
    ended = rollback(world.ledger, "flights", "looks odd", world.now())
    assert ended.champion == V1
    moved = replace(V2, uri="s3://elsewhere/2")
    for as_of in (AS_OF, AS_OF + timedelta(days=1), None):
        assert release(world.ledger, "flights", moved, POLICY, "again", as_of, world.now()) == ended
    again = release(world.ledger, "flights", V2, POLICY, "fixed", AS_OF, world.now(), by_hand=True)
    assert (again.action, again.challenger) == ("start", V2)
    assert world.run(world.ledger).champion == V2


@pytest.mark.parametrize("steps_pct", [(), (10.0,)])
def test_without_steps_too_what_was_rolled_back_stays_back_and_what_serves_is_not_promoted_again(world, steps_pct):
    policy = POLICY.model_copy(update={"steps_pct": steps_pct})
    assert release(world.ledger, "flights", V1, policy, "", None, world.now()).sequence == 1
    world.release(world.ledger, V2)
    ended = rollback(world.ledger, "flights", "looks odd", world.now())
    assert release(world.ledger, "flights", V2, policy, "", None, world.now()) == ended


@given(st.lists(st.tuples(st.sampled_from(["start", "promote", "rollback"]), st.sampled_from("123")), max_size=12))
def test_what_was_rolled_back_is_what_a_rollback_took_away_last(moves):
    history, back = [Entry("flights", 1, START, "promote", V1, None, 0.0, "", None)], set()
    for action, version in moves:
        last, model = history[-1], Model(version, "")
        champion, challenger = (last.champion, model) if action == "start" else (model, None)
        history.append(
            replace(last, sequence=last.sequence + 1, action=action, champion=champion, challenger=challenger)
        )
        was, now = ({m.version for m in (e.champion, e.challenger) if m} for e in history[-2:])
        back = (back | (was - now) if action == "rollback" else back - (was - now)) - now
    assert {m.version for m in (V1, V2, V3) if was_rolled_back(history, m)} == back


def test_a_policy_without_steps_promotes_at_once(world):
    entry = release(world.ledger, "flights", V2, POLICY.model_copy(update={"steps_pct": ()}), "", None, world.now())
    assert (entry.action, entry.champion) == ("promote", V2)


def test_a_rollback_by_hand_ends_the_canary_and_once_more_changes_nothing(world):
    world.release(world.ledger, V2)
    first = rollback(world.ledger, "flights", "looks odd", world.now())
    assert (first.action, first.champion, first.challenger, first.share_pct) == ("rollback", V1, None, 0.0)
    assert rollback(world.ledger, "flights", "looks odd", world.now()) == first


def test_a_second_rollback_for_the_same_reason_asks_for_another_one(world):
    world.release(world.ledger, V2)
    world.run(world.ledger)
    world.release(world.ledger, V3)
    first = rollback(world.ledger, "flights", "looks odd", world.now())
    world.time += timedelta(seconds=1)
    with pytest.raises(UsageError, match=r"version '2' serves since .*; give another reason to return further"):
        rollback(world.ledger, "flights", "looks odd", world.now())
    assert world.ledger.state("flights") == first
    assert rollback(world.ledger, "flights", "2 looks odd too", world.now()).champion == V1


def test_a_rollback_without_a_canary_returns_to_the_champion_before_and_never_to_one_rolled_back(world):
    for model in (V2, V3):
        world.release(world.ledger, model)
        world.run(world.ledger)
    assert rollback(world.ledger, "flights", "3 is bad", world.now()).champion == V2
    assert rollback(world.ledger, "flights", "2 is bad too", world.now()).champion == V1
    with pytest.raises(UsageError, match="'1' is the first champion"):
        rollback(world.ledger, "flights", "and 1", world.now())


def test_nothing_released_cannot_be_rolled_back_or_run(world):
    with pytest.raises(UsageError, match="pipeline 'other' has no champion"):
        rollback(world.ledger, "other", "", world.now())
    with pytest.raises(UsageError, match="nothing was ever released"):
        run_rollout(world.ledger, "other", POLICY, world.now, world.sleep, lambda _: None)


def test_there_is_no_canary_to_judge_without_a_challenger(world):
    with pytest.raises(UsageError, match="no canary to judge"):
        observe(world.ledger, world.ledger.state("flights"), POLICY)


def test_a_decision_on_an_older_entry_moves_nothing(world):
    started = world.release(world.ledger, V2)
    advanced = reconcile(world.ledger, started, PASS, POLICY, world.now())
    assert advanced.share_pct == 50.0
    assert reconcile(world.ledger, started, PASS, POLICY, world.now()) == advanced
    assert reconcile(world.ledger, started, FAIL, POLICY, world.now()) == advanced
    assert world.ledger.state("flights") == advanced


def test_a_rollback_by_hand_ends_the_loop(world):
    world.release(world.ledger, V2)

    def sleep(seconds: float) -> None:
        rollback(world.ledger, "flights", "stop", world.now())

    last = run_rollout(world.ledger, "flights", POLICY, world.now, sleep, lambda _: None)
    assert (last.action, last.reason) == ("rollback", "stop")


@pytest.mark.parametrize("challenger", [V2, V3], ids=["the same", "another"])
def test_what_comes_back_is_the_end_of_the_own_canary_even_if_another_one_began(world, challenger):
    world.release(world.ledger, V2)
    heard: list[Entry] = []

    def sleep(seconds: float) -> None:
        rollback(world.ledger, "flights", "stop", world.now())
        release(world.ledger, "flights", challenger, POLICY, "next", None, world.now(), by_hand=True)

    last = run_rollout(world.ledger, "flights", POLICY, world.now, sleep, heard.append)
    assert (last.action, last.reason) == ("rollback", "stop")
    assert [e.action for e in heard] == ["start", "rollback"]
    assert world.ledger.state("flights").challenger == challenger


class Killed(BaseException):
    """What SIGKILL is to a process: nothing runs after it."""


class MortalLedger:
    """A ledger whose user dies just before, or just after, its n-th call."""

    def __init__(self, ledger: Ledger, calls: int, after: bool) -> None:
        self._ledger, self._left, self._after = ledger, calls, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def call(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            result = method(*args)
            if self._left == 0:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_and_run_again_ends_the_same(tmp_path, broken, after):
    def a_world(name: str) -> World:
        made = World(f"sqlite:///{tmp_path / name}.db", broken=broken)
        made.release(made.ledger, V1)
        return made

    whole = a_world("whole")
    whole.release(whole.ledger, V2)
    whole.run(whole.ledger)

    died, calls = True, 0
    while died:
        calls += 1
        world, died = a_world(f"killed-{calls}"), False
        try:
            mortal = MortalLedger(world.ledger, calls, after)
            world.release(mortal, V2)
            world.run(mortal)
        except Killed:
            died = True
        world.release(world.ledger, V2)
        world.run(world.ledger)
        assert story(world.ledger) == story(whole.ledger)
        world.ledger.close()
    assert calls > 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_while_it_takes_a_canary_up_never_costs_a_good_one(tmp_path, after):
    died, calls = True, 0
    while died:
        calls += 1
        world, died = World(f"sqlite:///{tmp_path / str(calls)}.db"), False
        world.release(world.ledger, V1)
        world.release(world.ledger, V2)
        world.time += timedelta(minutes=10)
        try:
            world.run(MortalLedger(world.ledger, calls, after))
        except Killed:
            died = True
        world.run(world.ledger)
        assert world.ledger.state("flights").champion == V2
        assert "rollback" not in [action for action, *_ in story(world.ledger)]
        world.ledger.close()
    assert calls > 10


class Traffic(RuleBasedStateMachine):
    """Releases, decisions (also stale ones), rollbacks and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger("sqlite://")
        self.now = START
        self.old: list[Entry] = []

    def teardown(self) -> None:
        self.ledger.close()

    @rule(model=st.sampled_from([V1, V2, V3]), by_hand=st.booleans())
    def release(self, model: Model, by_hand: bool) -> None:
        try:
            first = release(self.ledger, "flights", model, POLICY, "r", None, self.now, by_hand=by_hand)
            assert release(self.ledger, "flights", model, POLICY, "r", None, self.now, by_hand=by_hand) == first
        except ConflictError:
            state = self.ledger.state("flights")
            assert state is not None
            assert state.challenger not in (None, model)

    @precondition(lambda self: self.ledger.state("flights"))
    @rule(decision=st.sampled_from([PASS, HOLD, FAIL]), stale=st.integers(0, 2))
    def reconcile(self, decision: CanaryDecision, stale: int) -> None:
        history = self.ledger.history("flights")
        judged = history[max(0, len(history) - 1 - stale)]
        if judged.challenger is None:
            return
        found = reconcile(self.ledger, judged, decision, POLICY, self.now)
        assert found.sequence >= judged.sequence
        if judged != history[-1] and decision is not HOLD:
            assert self.ledger.history("flights") == history

    @rule(reason=st.sampled_from(["a", "b"]))
    def rollback(self, reason: str) -> None:
        self.now += timedelta(microseconds=1)  # another call, not the same one once more
        try:
            first = rollback(self.ledger, "flights", reason, self.now)
            assert rollback(self.ledger, "flights", reason, self.now) == first
        except UsageError:
            state = self.ledger.state("flights")
            assert state is None or state.challenger is None or state.reason == reason

    @rule(seconds=st.sampled_from([1, 29, 31]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @invariant()
    def history_is_sound(self) -> None:
        history = self.ledger.history("flights")
        assert history[: len(self.old)] == self.old  # append-only
        self.old = history
        assert [e.sequence for e in history] == list(range(1, len(history) + 1))
        for before, entry in zip([None, *history], history, strict=False):
            assert entry.champion is not None
            assert (entry.challenger is None) == (entry.share_pct == 0.0)
            assert entry.share_pct in (0.0, *POLICY.steps_pct)
            assert entry.challenger != entry.champion
            if before and entry.action == "promote":
                assert (entry.champion, before.share_pct) == (before.challenger, 50.0)
            if before and entry.action in ("start", "advance"):
                assert entry.champion == before.champion
            if before and entry.action == "rollback" and before.challenger:
                assert replace(entry, challenger=None).champion == before.champion


Traffic.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_any_order_of_events_leaves_a_sound_history = Traffic.TestCase
