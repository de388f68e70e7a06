"""Who was told what, kept in the lake: a row for each message and each target that took it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from perennial.errors import StateError
from validation.alerts import Alert, Kind, Severity, Told, told_by
from validation.record import append_again

ALERTS = "alerts"
NOBODY = ""
"""The target of what was due while none was configured."""


@dataclass(frozen=True)
class Sent:
    """One message that one target took; NOBODY where there was no target."""

    target: str
    alert: Alert


def record_sent(lake: Lake, sent: Sequence[Sent], created: datetime) -> None:
    """Keep what was sent, in one commit.

    The same message kept twice counts as one.

    Raises:
        ConflictError: other writers kept committing first; what was sent may be sent once more.
    """
    if not sent:
        return
    rows = [
        {
            EVENT_TIMESTAMP: alert.as_of,
            "target": one.target,
            "check": told.check,
            "kind": told.kind,
            "severity": told.severity.name,
            "moved": json.dumps(sorted(told.moved)),
            "headline": alert.finding.headline,
            "decision": alert.decision,
            CREATED_TIMESTAMP: created,
        }
        for one in sent
        for alert, told in [(one.alert, told_by(one.alert))]
    ]
    frame = pl.DataFrame(rows).with_columns(pl.col(EVENT_TIMESTAMP, CREATED_TIMESTAMP).cast(pl.Datetime("us", "UTC")))
    append_again(lake, ALERTS, frame, partition_by=None)


def told_to(lake: Lake) -> Mapping[str, tuple[Told, ...]]:
    """What each target was told, by target; nothing if nobody ever was.

    Raises:
        StateError: the table has a kind or severity that this version does not know.
    """
    if not lake.exists(ALERTS):
        return {}
    rows = lake.read(ALERTS, columns=("target", "check", "kind", "severity", "moved", EVENT_TIMESTAMP))
    found: dict[str, list[Told]] = {}
    for target, check, kind, severity, moved, as_of in rows.iter_rows():
        if kind not in get_args(Kind) or severity not in Severity.__members__:
            raise StateError(
                f"{lake.namespace}.{ALERTS} has an alert of kind {kind!r} and severity {severity!r}, which this version "
                "of perennial does not know; use the version that wrote it"
            )
        told = Told(check, kind, Severity[severity], frozenset(json.loads(moved)), as_of)
        found.setdefault(target, []).append(told)
    return {target: tuple(told) for target, told in found.items()}


def read_sent(lake: Lake) -> pl.DataFrame:
    """Every message and target, newest first; empty if there was none."""
    if not lake.exists(ALERTS):
        return pl.DataFrame()
    return lake.read(ALERTS).sort(
        EVENT_TIMESTAMP, CREATED_TIMESTAMP, "check", "target", descending=[True, True, False, False]
    )
