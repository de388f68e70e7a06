"""What the last comparison of online with offline found, kept in the lake, so that every process can tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from features.lake import EVENT_TIMESTAMP, Lake
from features.online_check import ViewCheck

ONLINE_CHECKS = "online_checks"
LAST_CHECK = "perennial.online-check"
SCHEMA = {
    EVENT_TIMESTAMP: pl.Datetime("us", "UTC"),
    "view": pl.String(),
    "status": pl.String(),
    "keys": pl.Int64(),
    "differing": pl.Int64(),
    "reason": pl.String(),
}


@dataclass(frozen=True)
class LastCheck:
    """The newest check of a pipeline.

    Attributes:
        at: when, UTC.
        keys: keys that were looked at, by view.
        differences: of each view, keys that were not the same, by kind; a kind that was not found is not in it.
    """

    at: datetime
    keys: Mapping[str, int]
    differences: Mapping[str, Mapping[str, int]]


def record_check(lake: Lake, checks: Sequence[ViewCheck], at: datetime) -> None:
    """Keep what a check found, one row a view; the commit itself says it, too.

    Raises:
        ConflictError: another check was recorded in the same moment.
    """
    rows = [
        {
            EVENT_TIMESTAMP: at,
            "view": check.view,
            "status": check.verdict.status.name,
            "keys": check.keys,
            "differing": check.differing,
            "reason": check.verdict.reason,
        }
        for check in checks
    ]
    last = {
        "at": at.isoformat(),
        "keys": {check.view: check.keys for check in checks},
        "differences": {check.view: dict(check.differences) for check in checks},
    }
    lake.append(
        ONLINE_CHECKS, pl.DataFrame(rows, schema=SCHEMA), properties={LAST_CHECK: json.dumps(last)}, partition_by=None
    )


def last_check(lake: Lake) -> LastCheck | None:
    """The newest check; None before the first. Costs the same however many there were."""
    text = lake.property(ONLINE_CHECKS, LAST_CHECK)
    if text is None:
        return None
    told = json.loads(text)
    return LastCheck(datetime.fromisoformat(told["at"]), told["keys"], told["differences"])
