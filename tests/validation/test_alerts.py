"""When people are told, and what."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import example, given

from pipelines.spec import AlertPolicy, DriftPolicy, Feature
from validation.alerts import Alert, Finding, Kind, Moved, Severity, Told, due, findings_of, told_by, unjudged
from validation.drift import DriftVerdict, FeatureDrift, detect_drift
from validation.profile import build_reference, profile
from validation.verdict import Status, Verdict
from validation.windows import Window

T0 = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = AlertPolicy(cooldown_s=6 * 3_600)


@dataclass(frozen=True)
class Run:
    """One monitoring run of one check: when, how it ended, and what moved if it failed."""

    hour: int
    status: Status
    severity: Severity = Severity.WARNING
    moved: frozenset[str] = frozenset()

    @property
    def as_of(self) -> datetime:
        return T0 + self.hour * HOUR


def drift(severity: Severity = Severity.WARNING, *moved: str, since: datetime | None = None) -> Finding:
    return Finding("drift", severity, "moved", tuple(Moved(name, "PSI 0.4") for name in moved), since)


def tell(run: Run, history: Iterable[Told]) -> tuple[Alert, ...]:
    findings = [drift(run.severity, *sorted(run.moved))] if run.status is Status.FAIL else []
    return due("shop", findings, {"drift": Verdict(run.status, "so it is")}, history, POLICY, "no retrain", run.as_of)


def told(runs: Iterable[Run]) -> list[tuple[int, Kind]]:
    """Every message, as the hour and kind, when each run is followed by the next."""
    history: list[Told] = []
    for run in runs:
        history += [told_by(alert) for alert in tell(run, history)]
    return [(int((t.as_of - T0) / HOUR), t.kind) for t in history]


def fails(hour: int, *moved: str, severity: Severity = Severity.WARNING) -> Run:
    return Run(hour, Status.FAIL, severity, frozenset(moved))


def passes(hour: int) -> Run:
    return Run(hour, Status.PASS)


def test_a_condition_alerts_once_and_its_end_is_told_once() -> None:
    assert told([fails(0, "a"), fails(1, "a"), fails(5, "a"), passes(6), passes(7)]) == [(0, "alert"), (6, "recovery")]


def test_what_lasts_is_told_again_after_each_cooldown() -> None:
    assert told(fails(hour, "a") for hour in range(14)) == [(0, "alert"), (6, "reminder"), (12, "reminder")]


def test_one_more_column_alerts_at_once_and_one_less_does_not() -> None:
    assert told([fails(0, "a"), fails(1, "a", "b"), fails(2, "b"), fails(3, "a")]) == [(0, "alert"), (1, "alert")]


def test_a_graver_finding_alerts_at_once_and_a_lesser_one_does_not() -> None:
    graver = fails(1, "a", severity=Severity.CRITICAL)
    assert told([fails(0, "a"), graver, fails(2, "a")]) == [(0, "alert"), (1, "alert")]


def test_what_fails_again_after_its_recovery_was_told_alerts_at_once_however_lately_it_was_told() -> None:
    assert told([fails(0, "a"), passes(1), fails(2, "a")]) == [(0, "alert"), (1, "recovery"), (2, "alert")]


def test_a_second_recovery_within_the_cooldown_waits_and_is_told_by_the_first_pass_after_it() -> None:
    flapping = [fails(0, "a"), passes(1), fails(2, "a"), passes(3), fails(4, "a"), passes(5), passes(6), passes(7)]
    assert told([*flapping, passes(8)]) == [(0, "alert"), (1, "recovery"), (2, "alert"), (7, "recovery")]


def test_what_turns_with_every_run_tells_of_three_turns_a_cooldown_at_most() -> None:
    turning = told(passes(hour) if hour % 2 else fails(hour, "a") for hour in range(48))
    hours = [hour for hour, _ in turning]
    assert max(sum(first <= hour < first + 6 for hour in hours) for first in hours) == 3
    assert turning[:5] == [(0, "alert"), (1, "recovery"), (2, "alert"), (7, "recovery"), (8, "alert")]


@pytest.mark.parametrize("status", [Status.INCONCLUSIVE, Status.ERROR])
def test_only_a_pass_is_a_recovery(status: Status) -> None:
    runs = [fails(0, "a"), Run(1, status), Run(9, status), passes(10)]
    assert told(runs) == [(0, "alert"), (10, "recovery")]


def test_a_check_that_was_not_made_tells_nothing() -> None:
    history = [Told("drift", "alert", Severity.WARNING, frozenset({"a"}), T0)]
    assert due("shop", [], {"data": Verdict(Status.PASS, "fine")}, history, POLICY, "", T0 + HOUR) == ()


def test_a_pass_that_was_preceded_by_no_alert_tells_nothing() -> None:
    assert told([passes(0), Run(1, Status.INCONCLUSIVE), passes(2)]) == []


def test_what_was_told_of_a_later_moment_does_not_silence_an_earlier_one() -> None:
    later = Told("drift", "alert", Severity.CRITICAL, frozenset({"a"}), T0 + 1_000 * HOUR)
    (alert,) = tell(fails(0, "a"), [later])
    assert alert.kind == "alert"


def test_a_reminder_and_a_recovery_say_since_when_it_was_told() -> None:
    first = told_by(tell(fails(0, "a"), [])[0])
    (reminder,) = tell(fails(6, "a"), [first])
    (recovery,) = tell(passes(7), [first, told_by(reminder)])
    assert [reminder.finding.since, recovery.finding.since] == [T0, T0]
    assert recovery.finding.headline == "so it is"


def test_a_recovery_has_the_gravest_of_what_it_ends() -> None:
    history = [told_by(tell(fails(hour, "a", severity=how), [])[0]) for hour, how in enumerate(reversed(Severity))]
    (recovery,) = tell(passes(3), history)
    assert recovery.finding.severity is Severity.CRITICAL


def test_a_check_that_was_told_of_at_this_very_moment_tells_no_more() -> None:
    # Which of two messages of one moment was the later, the record does not know.
    alert = [told_by(tell(fails(0, "a"), [])[0])]
    assert tell(fails(0, "a", "b", severity=Severity.CRITICAL), alert) == ()
    assert tell(passes(0), alert) == ()


def test_a_check_that_passes_with_a_finding_is_not_over() -> None:
    history = [told_by(tell(fails(0, "a"), [])[0])]
    watched = drift(Severity.WARNING, "a")
    assert due("shop", [watched], {"drift": Verdict(Status.PASS, "watched")}, history, POLICY, "", T0 + HOUR) == ()


def test_a_beginning_that_the_check_knows_is_kept() -> None:
    known = drift(Severity.WARNING, "a", since=T0 - 9 * HOUR)
    (alert,) = due("shop", [known], {}, [], POLICY, "", T0)
    assert alert.finding.since == T0 - 9 * HOUR


def test_the_gravest_comes_first_and_recoveries_come_last() -> None:
    history = [Told("data", "alert", Severity.CRITICAL, frozenset(), T0)]
    findings = [drift(), Finding("performance", Severity.CRITICAL, "worse")]
    verdicts = {"data": Verdict(Status.PASS, "fine")}
    alerts = due("shop", findings, verdicts, history, POLICY, "no retrain", T0 + HOUR)
    assert [(a.kind, a.finding.check) for a in alerts] == [
        ("alert", "performance"),
        ("alert", "drift"),
        ("recovery", "data"),
    ]
    assert {a.decision for a in alerts} == {"no retrain"}


hours = st.lists(st.integers(1, 5), min_size=1, max_size=25).map(lambda steps: list(itertools.accumulate(steps)))
conditions = st.tuples(
    st.sampled_from([Status.FAIL, Status.FAIL, Status.PASS, Status.INCONCLUSIVE, Status.ERROR]),
    st.sampled_from([Severity.WARNING, Severity.CRITICAL]),
    st.frozensets(st.sampled_from("abc")),
)
histories = hours.flatmap(
    lambda at: st.lists(conditions, min_size=len(at), max_size=len(at)).map(
        lambda ends: [Run(hour, *end) for hour, end in zip(at, ends, strict=True)]
    )
)


COOLDOWN = timedelta(seconds=POLICY.cooldown_s)
MOST_IN_A_COOLDOWN = 11
"""Of one check with two severities and three columns.

Within a cooldown each alert of an episode adds a column or a severity to those before: 1 + 3 + 1. Recoveries are a cooldown
apart, so there is one of them, and an episode on either side.
"""


@given(histories)
@example([fails(0, "a"), passes(1), fails(2, "a"), passes(3), passes(7)])
def test_the_last_word_is_never_a_false_recovery_and_a_false_alert_lasts_one_cooldown_at_most(
    runs: list[Run],
) -> None:
    history: list[Told] = []
    for run in runs:
        history += [told_by(alert) for alert in tell(run, history)]
        recoveries = [t.as_of for t in history if t.kind == "recovery"]
        since = [t for t in history if not recoveries or t.as_of > recoveries[-1]]
        if run.status is Status.FAIL:
            # Since the last recovery, and within one cooldown, they heard all of it: as grave, and every column.
            recent = [t for t in since if run.as_of - t.as_of < COOLDOWN]
            assert max(t.severity for t in recent) >= run.severity
            assert run.moved <= frozenset().union(*(t.moved for t in recent))
        elif run.status is Status.PASS and since:
            assert recoveries, "the first recovery is told by the first PASS"
            assert run.as_of - recoveries[-1] < COOLDOWN


@given(histories)
def test_messages_are_bounded_and_each_says_something_that_was_not_the_last_word(runs: list[Run]) -> None:
    history: list[Told] = []
    is_open = False
    for run in runs:
        alerts = tell(run, history)
        kinds = [alert.kind for alert in alerts]
        may_come = {
            Status.FAIL: [[], ["alert"], ["reminder"]] if is_open else [["alert"]],
            Status.PASS: [[], ["recovery"]] if is_open else [[]],
        }
        assert kinds in may_come.get(run.status, [[]])
        if kinds:
            is_open = kinds != ["recovery"]
        history += [told_by(alert) for alert in alerts]
    for first in history:
        assert sum(first.as_of <= t.as_of < first.as_of + COOLDOWN for t in history) <= MOST_IN_A_COOLDOWN
    for one, other in itertools.pairwise(t.as_of for t in history if t.kind == "recovery"):
        assert other - one >= COOLDOWN


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_column_that_comes_and_goes_is_three_messages_a_cooldown_at_most(failing: list[bool]) -> None:
    hours = [hour for hour, _ in told(fails(h, "a") if bad else passes(h) for h, bad in enumerate(failing))]
    for first in hours:
        assert sum(first <= hour < first + 6 for hour in hours) <= 3


@given(histories, st.randoms())
def test_runs_that_are_repeated_tell_nothing_new_whatever_the_order_of_the_record(
    runs: list[Run], chance: st.DataObject
) -> None:
    history: list[Told] = []
    for run in runs:
        history += [told_by(alert) for alert in tell(run, history)]
    # Killed between sending and recording, a message is there twice.
    record = history + history
    chance.shuffle(record)
    assert [tell(run, record) for run in runs] == [()] * len(runs)
    after = Run(runs[-1].hour + 3, Status.FAIL, Severity.CRITICAL, frozenset("ab"))
    assert tell(after, record) == tell(after, history)


def feature(name: str, status: Status, watched: bool = False) -> FeatureDrift:
    return FeatureDrift(name, 0.4, 0.0, 0.0, status, f"PSI of {name}", watched)


def test_findings_are_the_checks_that_fail_or_could_not_run() -> None:
    verdicts = {
        "data": Verdict(Status.ERROR, "no contract"),
        "drift": Verdict(Status.FAIL, "2 of 4 columns drifted: b: PSI of b; a: PSI of a"),
        "performance": Verdict(Status.INCONCLUSIVE, "too few"),
        "freshness": Verdict(Status.FAIL, "old"),
        "labels": Verdict(Status.PASS, "fine"),
    }
    moved = DriftVerdict(
        verdicts["drift"],
        (
            feature("b", Status.FAIL),
            feature("a", Status.FAIL),
            feature("c", Status.PASS, watched=True),
            feature("d", Status.PASS),
        ),
    )
    data, drifted, old = findings_of(verdicts, moved, since={"drift": T0}, links={"data": "http://docs/data"})
    assert data == Finding(
        "data", Severity.WARNING, "the check could not run: no contract", link="http://docs/data", case="broken"
    )
    assert (drifted.severity, drifted.headline, drifted.since) == (
        Severity.WARNING,
        "2 of 4 columns drifted",
        T0,
    )
    assert drifted.moved == (Moved("b", "PSI of b"), Moved("a", "PSI of a"))
    assert (old.check, old.severity, old.headline) == ("freshness", Severity.WARNING, "old")


def test_a_check_without_a_verdict_for_longer_than_its_patience_is_a_finding() -> None:
    verdicts = {name: Verdict(Status.INCONCLUSIVE, "no rows") for name in ("data", "drift", "labels")}
    verdicts["performance"] = Verdict(Status.PASS, "fine")
    patience = dict.fromkeys(("data", "drift", "performance"), 6 * HOUR)
    since = {"data": T0 + HOUR, "drift": T0, "labels": T0, "performance": T0}
    assert unjudged(verdicts, since, patience, T0 + 6 * HOUR) == ()
    (drift_,) = unjudged(verdicts, since, patience, T0 + 7 * HOUR)
    assert (drift_.check, drift_.severity, drift_.since, drift_.case) == ("drift", Severity.WARNING, T0, "silent")
    assert drift_.headline == f"drift has not been judged since {T0:%Y-%m-%d %H:%M} UTC: no rows"


def drift_of(before: list[float | None], now: list[float | None]) -> Finding:
    """What is told of a column that moved; the score has not."""

    def frame(values: list[float | None]) -> pl.DataFrame:
        return pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64), "score": [0.0, 1.0] * (len(values) // 2)})

    policy = DriftPolicy(persistence=1)
    reference = build_reference(frame(before), [Feature(name="x", kind="numeric")], policy)
    found = detect_drift(reference, [Window.of_rows(profile(frame(now), reference))], policy)
    (told_of,) = findings_of({"drift": found.verdict}, found)
    assert [m.name for m in told_of.moved] == ["x"]
    return told_of


@pytest.mark.parametrize(
    ("now", "case"),
    [
        ([1.0, None] * 600, "missing"),
        ([None] * 1_200, "missing"),
        ([5.0, None] * 600, "wrong"),
        ([5.0] * 1_200, "wrong"),
    ],
    ids=["half are gone", "all are gone", "half are gone and the others moved", "all have moved"],
)
def test_drift_that_is_nothing_but_values_that_are_gone_is_told_as_such(now: list[float | None], case: str) -> None:
    assert drift_of([1.0] * 1_190 + [5.0] * 10, now).case == case


def test_values_that_come_back_are_not_told_as_gone() -> None:
    found = drift_of([1.0, 2.0, None] * 400, [1.0, 2.0] * 600)
    assert "rows without a value 33.3% -> 0.0%" in found.moved[0].how
    assert found.case == "wrong"


def test_bad_data_and_bad_answers_are_critical() -> None:
    verdicts = {check: Verdict(Status.FAIL, "bad") for check in ("data", "performance")}
    found = findings_of(verdicts, DriftVerdict(Verdict(Status.PASS, "fine"), ()))
    assert [f.severity for f in found] == [Severity.CRITICAL] * 2
