"""What every check found, kept in the lake: when something began, and whether it is news."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from validation.record import append_again
from validation.verdict import Status, Verdict

VERDICTS = "verdicts"
STATUSES = "perennial.statuses"
REPORT = "perennial.drift_report"
UNJUDGED = "perennial.unjudged_since"


@dataclass(frozen=True)
class KeptReport:
    """The last drift report.

    Attributes:
        moved: columns that it shows as moved.
        link: its address.
        version: of the champion.
        drawn: the clock of the run that drew it.
    """

    moved: frozenset[str]
    link: str
    version: str
    drawn: datetime


def record_verdicts(
    lake: Lake,
    verdicts: Mapping[str, Verdict],
    as_of: datetime,
    created: datetime,
    report: KeptReport | None = None,
) -> None:
    """Keep the verdicts of one run, one row a check; the commit itself says their statuses, and where the report is."""
    rows = [
        {
            EVENT_TIMESTAMP: as_of,
            "check": check,
            "status": verdict.status.name,
            "reason": verdict.reason,
            "measurements": json.dumps(verdict.as_dict()["measurements"]),
            CREATED_TIMESTAMP: created,
        }
        for check, verdict in verdicts.items()
    ]
    at = pl.col(EVENT_TIMESTAMP, CREATED_TIMESTAMP).cast(pl.Datetime("us", "UTC"))
    statuses = {check: verdict.status.name for check, verdict in verdicts.items()}
    before = unjudged_since(lake)
    unjudged = {
        check: before.get(check, as_of).isoformat()
        for check, verdict in verdicts.items()
        if verdict.status in (Status.INCONCLUSIVE, Status.ERROR)
    }
    kept = None
    if report:
        kept = {**asdict(report), "moved": sorted(report.moved), "drawn": report.drawn.isoformat()}
    words = {STATUSES: json.dumps(statuses), REPORT: json.dumps(kept), UNJUDGED: json.dumps(unjudged)}
    append_again(lake, VERDICTS, pl.DataFrame(rows).with_columns(at), properties=words)


def last_statuses(lake: Lake) -> Mapping[str, str]:
    """The status of each check in the newest run; empty if there was none. Costs the same however long the history is."""
    return dict(json.loads(lake.property(VERDICTS, STATUSES) or "{}"))


def unjudged_since(lake: Lake) -> Mapping[str, datetime]:
    """By check the run from which on it has been neither PASS nor FAIL; checks that were judged the last time are not in it."""
    told = json.loads(lake.property(VERDICTS, UNJUDGED) or "{}")
    return {check: datetime.fromisoformat(moment) for check, moment in told.items()}


def last_report(lake: Lake) -> KeptReport | None:
    """The report of what the newest run found moved; None if it found nothing, or drew none."""
    told = json.loads(lake.property(VERDICTS, REPORT) or "null")
    if not told:
        return None
    return KeptReport(frozenset(told["moved"]), told["link"], told["version"], datetime.fromisoformat(told["drawn"]))
