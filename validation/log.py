"""What every check found, kept in the lake: when something began, and whether it is news."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

import polars as pl

from features.lake import CREATED_TIMESTAMP, Lake
from validation.verdict import Verdict

VERDICTS = "verdicts"


def record_verdicts(lake: Lake, verdicts: Mapping[str, Verdict], as_of: datetime, created: datetime) -> None:
    """Keep the verdicts of one run, one row a check."""
    rows = [
        {
            "as_of": as_of,
            "check": check,
            "status": verdict.status.name,
            "reason": verdict.reason,
            "measurements": json.dumps(verdict.as_dict()["measurements"]),
            CREATED_TIMESTAMP: created,
        }
        for check, verdict in verdicts.items()
    ]
    at = pl.col("as_of", CREATED_TIMESTAMP).cast(pl.Datetime("us", "UTC"))
    lake.append(VERDICTS, pl.DataFrame(rows).with_columns(at), partition_by=None)


def verdict_history(lake: Lake) -> pl.DataFrame:
    """Every verdict there was, oldest first: `as_of`, `check`, `status`, `reason`, `measurements` (JSON)."""
    if not lake.exists(VERDICTS):
        return pl.DataFrame(schema={"as_of": pl.Datetime("us", "UTC"), "check": pl.String, "status": pl.String})
    return lake.read(VERDICTS).sort("as_of", CREATED_TIMESTAMP)


def previous_status(lake: Lake, check: str, as_of: datetime) -> str | None:
    """The status a check had the last time before `as_of`; None if it never ran."""
    before = verdict_history(lake).filter((pl.col("check") == check) & (pl.col("as_of") < as_of))
    return str(before.get_column("status")[-1]) if before.height else None
