"""What people are told, and when: each condition once, a reminder while it lasts, and that it is over.

    quiet --finding--> open --PASS--> quiet        each arrow is a message: alert, then recovery
                       open --cooldown--> open     reminder
                       open --graver, one more column--> open   alert

The last word may be an alert too many, but never a recovery too early: what fails after a recovery was told is told at
once, however lately it was told before. So that a check that comes and goes does not tell of each turn, a second
recovery within the cooldown waits, and the check counts as open: one PASS after the cooldown tells it. A check that is
INCONCLUSIVE or could not run ends nothing: only a PASS does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from perennial.wording import counted
from pipelines.spec import AlertPolicy
from validation.drift import DriftVerdict
from validation.verdict import Status, Verdict

Kind = Literal["alert", "reminder", "recovery"]

Case = Literal["wrong", "missing", "watched", "columns", "silent", "broken"]
"""How a finding is one, by which people are told what to do.

wrong: what the check looks for; missing: drift that is nothing but values that are gone; watched: moves that are no drift;
columns: not as the code says; silent: the check has too little to go on; broken: it cannot run.
"""


class Severity(enum.IntEnum):
    """How much it matters, least first, so that `max` is the gravest."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2


# Drift asks whether the model still fits; bad data and bad answers are harm that is being done.
SEVERITIES: Mapping[str, Severity] = {
    "data": Severity.CRITICAL,
    "drift": Severity.WARNING,
    "performance": Severity.CRITICAL,
}


@dataclass(frozen=True)
class Moved:
    """One thing that moved: its name, and how far as a clause with numbers."""

    name: str
    how: str


@dataclass(frozen=True)
class Finding:
    """What one check found wrong.

    Attributes:
        check: "data", "drift", "performance" or another.
        severity: how much it matters.
        headline: a sentence with the numbers.
        moved: what moved, worst first; empty where the check does not look at columns.
        since: when it began; None = it is not known.
        link: address of the report; None = there is none.
        case: how it is one.
    """

    check: str
    severity: Severity
    headline: str
    moved: tuple[Moved, ...] = ()
    since: datetime | None = None
    link: str | None = None
    case: Case = "wrong"


@dataclass(frozen=True)
class Alert:
    """A message to people.

    Attributes:
        pipeline: whose it is.
        kind: "alert" = it is new, "reminder" = it lasts, "recovery" = it is over.
        finding: what it is about; of a recovery, what the check says now, since when it had been told.
        decision: what was decided about a retrain, as a sentence; empty = nothing was.
        as_of: the moment it speaks of (UTC).
    """

    pipeline: str
    kind: Kind
    finding: Finding
    decision: str
    as_of: datetime


@dataclass(frozen=True)
class Told:
    """What somebody was told once: of an `Alert` as much as decides what is told next."""

    check: str
    kind: Kind
    severity: Severity
    moved: frozenset[str]
    as_of: datetime


def findings_of(
    verdicts: Mapping[str, Verdict],
    drift: DriftVerdict,
    since: Mapping[str, datetime] | None = None,
    links: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """What a monitoring run found wrong: its checks that FAIL or could not run, and columns that matter and are watched.

    Args:
        verdicts: by check.
        drift: the columns behind the verdict of "drift".
        since: when each check began to fail, where it is known.
        links: address of each check's report, where there is one.
    """
    since, links = since or {}, links or {}
    found = []
    for check, verdict in verdicts.items():
        if verdict.status not in (Status.ERROR, Status.FAIL):
            continue
        failed = verdict.status is Status.FAIL
        severity = SEVERITIES.get(check, Severity.WARNING) if failed else Severity.WARNING
        headline = verdict.reason if failed else f"the check could not run: {verdict.reason}"
        moved: tuple[Moved, ...] = ()
        case: Case = "wrong" if failed else "broken"
        if check == "drift" and failed and drift.drifted:
            headline = f"{len(drift.drifted)} of {len(drift.features)} columns drifted"
            moved = tuple(Moved(f.feature, f.reason) for f in drift.drifted)
            case = "missing" if all(f.lost_values for f in drift.drifted) else "wrong"
        found.append(Finding(check, severity, headline, moved, since.get(check), links.get(check), case))
    moving = [f for f in drift.watched if f.matters]
    if moving and not drift.drifted:
        headline = f"{counted(len(moving), 'column')} moved, not far enough to be drift"
        moved = tuple(Moved(f.feature, f.reason) for f in moving)
        found.append(
            Finding("drift", Severity.INFO, headline, moved, since.get("drift"), links.get("drift"), "watched")
        )
    return tuple(found)


def unjudged(
    verdicts: Mapping[str, Verdict], since: Mapping[str, datetime], patience: Mapping[str, timedelta], as_of: datetime
) -> tuple[Finding, ...]:
    """Checks that have had too little to go on for too long: a stream that ended, labels that stay away.

    Args:
        verdicts: of this run, by check.
        since: from when on a check has been neither PASS nor FAIL.
        patience: how long that is nothing odd, such as until a new pipeline's first window is full; other checks have none.
        as_of: the moment (UTC).
    """
    found = []
    for check, verdict in verdicts.items():
        silent = verdict.status is Status.INCONCLUSIVE and check in since and check in patience
        if silent and as_of - since[check] > patience[check]:
            headline = f"{check} has not been judged since {since[check]:%Y-%m-%d %H:%M} UTC: {verdict.reason}"
            found.append(Finding(check, Severity.WARNING, headline, since=since[check], case="silent"))
    return tuple(found)


def due(
    pipeline: str,
    findings: Iterable[Finding],
    verdicts: Mapping[str, Verdict],
    history: Iterable[Told],
    policy: AlertPolicy,
    decision: str,
    as_of: datetime,
) -> tuple[Alert, ...]:
    """The messages that are due now to somebody who was told `history`.

    A finding that was told within the cooldown and since the last recovery, as grave and with all its columns, is not
    told again; a recovery is not within the cooldown after the one before. Nor is anything of a check that was told of
    at this very moment, so that a run that is repeated says nothing twice. What was told of later moments is not known
    yet.

    Args:
        pipeline: whose checks they are.
        findings: of this run, one a check.
        verdicts: of this run; a check that PASSes and has no finding is fine.
        history: what was told, in any order; twice counts as once.
        policy: the cooldown.
        decision: what was decided about a retrain.
        as_of: the moment (UTC).

    Returns:
        The gravest first, recoveries last.
    """
    by_check: dict[str, list[Told]] = {}
    for told in sorted(history, key=lambda t: t.as_of):
        if told.as_of <= as_of:
            by_check.setdefault(told.check, []).append(told)
    wrong = {finding.check: finding for finding in findings}
    cooldown = timedelta(seconds=policy.cooldown_s)
    alerts = []
    for finding in sorted(wrong.values(), key=lambda f: -f.severity):
        told_of = by_check.get(finding.check, [])
        if kind := _kind(finding, told_of, cooldown, as_of):
            alerts.append(Alert(pipeline, kind, _dated(finding, told_of, as_of), decision, as_of))
    for check, told_of in by_check.items():
        episode = _episode(told_of)
        fine = check in verdicts and verdicts[check].passed and check not in wrong
        if fine and episode and told_of[-1].as_of < as_of and not _recovered_since(told_of, as_of - cooldown):
            gravest = max(told.severity for told in episode)
            finding = Finding(check, gravest, verdicts[check].reason, since=episode[0].as_of)
            alerts.append(Alert(pipeline, "recovery", finding, decision, as_of))
    return tuple(alerts)


def open_checks(history: Iterable[Told]) -> frozenset[str]:
    """Checks of which somebody was told that something is wrong, and not yet that it is over."""
    last: dict[str, Told] = {}
    for told in sorted(history, key=lambda t: t.as_of):
        last[told.check] = told
    return frozenset(check for check, told in last.items() if told.kind != "recovery")


def told_by(alert: Alert) -> Told:
    """What an alert leaves with those who got it."""
    finding = alert.finding
    return Told(finding.check, alert.kind, finding.severity, frozenset(m.name for m in finding.moved), alert.as_of)


def _kind(finding: Finding, told_of: list[Told], cooldown: timedelta, as_of: datetime) -> Kind | None:
    """As what a finding is told; None if it is not."""
    if told_of and told_of[-1].as_of == as_of:
        return None
    episode = _episode(told_of)
    if _covers([told for told in episode if as_of - told.as_of < cooldown], finding):
        return None
    return "reminder" if _covers(episode, finding) else "alert"


def _covers(told_of: list[Told], finding: Finding) -> bool:
    """Whether all of it was told: as grave, and every column."""
    names = {name for told in told_of for name in told.moved}
    return any(t.severity >= finding.severity for t in told_of) and all(m.name in names for m in finding.moved)


def _episode(told_of: list[Told]) -> list[Told]:
    """What was told since the last recovery."""
    ends = [number for number, told in enumerate(told_of) if told.kind == "recovery"]
    return told_of[ends[-1] + 1 :] if ends else told_of


def _recovered_since(told_of: list[Told], moment: datetime) -> bool:
    return any(told.kind == "recovery" and told.as_of > moment for told in told_of)


def _dated(finding: Finding, told_of: list[Told], as_of: datetime) -> Finding:
    """The finding with when it began: as the check knows it, else since it has been told, else now."""
    if finding.since:
        return finding
    episode = _episode(told_of)
    since = episode[0].as_of if episode else as_of
    return replace(finding, since=since)
