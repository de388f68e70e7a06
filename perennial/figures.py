"""The closing figures of a story, from what the lake and the ledger kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from features.dead_letters import DEAD_LETTERS
from features.labels import LABEL, PREDICTIONS, outcomes
from features.lake import EVENT_TIMESTAMP
from features.store import view_table
from flows.context import Context, predictor
from serving.batch import SCORE
from training.gate import evaluate
from training.history import retrains

MONTH_ROWS = 1_000


@dataclass
class Figures:
    """What the demo measured; the keys of its JSON."""

    events_produced: int = 0
    events_ingested: int = 0
    dead_lettered: int = 0
    monthly_auc: dict[str, dict[str, float | None]] = field(default_factory=dict)
    mean_auc: dict[str, float | None] = field(default_factory=dict)
    drift_alerts: list[dict[str, Any]] = field(default_factory=list)
    retrains: list[dict[str, Any]] = field(default_factory=list)
    promotions: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    bad_release: dict[str, Any] = field(default_factory=dict)
    drift_to_serving_s: list[float] = field(default_factory=list)
    live_traffic: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    peak_rss_mb: float = 0.0
    peak_rss_process: str = ""
    stages: dict[str, bool] = field(default_factory=dict)


def measure(
    context: Context,
    figures: Figures,
    verdicts: Mapping[str, set[str]],
    automatic: Sequence[str],
    traffic: Mapping[str, Any],
) -> None:
    """Fill in what can be read afterwards, and which stages really happened.

    Args:
        context: the pipeline.
        figures: filled in.
        verdicts: by check, the statuses that monitoring found.
        automatic: runs of retrain that an automation created.
        traffic: the report of the live requests.
    """
    lake, history = context.lake, context.ledger.history(context.spec.name)
    figures.events_ingested = sum(lake.rows(event.table) for event in context.spec.events)
    figures.dead_lettered = lake.rows(DEAD_LETTERS)
    figures.monthly_auc = monthly_auc(context)
    for name in ("static", "kept_fresh"):
        values = [auc for month in figures.monthly_auc.values() if (auc := month[name]) is not None]
        figures.mean_auc[name] = round(math.fsum(values) / len(values), 4) if values else None
    figures.retrains = [
        {
            "reason": r.reason,
            "as_of": r.as_of.isoformat(),
            "champion_auc": _number(r.champion_auc),
            "candidate_auc": _number(r.candidate_auc),
            "decision": r.decision,
            "version": r.version,
        }
        for r in retrains(lake)
    ]
    moves = [{**asdict(e), "at": e.at.isoformat(), "as_of": e.as_of.isoformat() if e.as_of else None} for e in history]
    figures.promotions = [move for move in moves if move["action"] == "promote"]
    figures.rollbacks = [move for move in moves if move["action"] == "rollback"]
    figures.live_traffic = dict(traffic)
    answers = traffic.get("answers", {})
    challenged = {e.challenger.version for e in history if e.challenger}
    figures.stages = {
        "stream": figures.events_produced > 0
        and figures.events_produced == figures.events_ingested + figures.dead_lettered,
        "dead_letters": figures.dead_lettered > 0,
        "features": all(lake.rows(view_table(view)) > 0 for view in context.spec.views),
        "validation": "PASS" in verdicts.get("data", set()),
        "performance": bool({"PASS", "FAIL"} & verdicts.get("performance", set())),
        "drift_alert": any(alert["check"] == "drift" for alert in figures.drift_alerts),
        "automatic_retrain": bool(automatic),
        "gate": any(
            r["decision"] in ("accepted", "rejected") and r["champion_auc"] is not None for r in figures.retrains
        ),
        "canary": bool(challenged & set(traffic.get("versions", {}))),
        "promotion": len(figures.promotions) > 1,
        "live_requests": set(answers) == {"200"},
        "bad_release_rolled_back": bool(figures.bad_release)
        and figures.bad_release["restored_version"] == figures.bad_release["champion_before"]
        and figures.bad_release["bad_responses"] > 0,
    }


def monthly_auc(context: Context) -> dict[str, dict[str, float | None]]:
    """AUC by month of what was predicted, and of what the first champion would have predicted on the same rows."""
    if not context.lake.exists(PREDICTIONS):
        return {}
    first_champion = next((e.champion for e in context.ledger.history(context.spec.name) if e.champion), None)
    if first_champion is None:
        return {}
    rows = outcomes(context.lake, context.spec, None, datetime.max.replace(tzinfo=UTC)).frame
    known = rows.drop_nulls(LABEL)
    known = known.with_columns(
        static=pl.Series(predictor(first_champion.uri).predict(known)),
        month=pl.col(EVENT_TIMESTAMP).dt.strftime("%Y-%m"),
    )
    found: dict[str, dict[str, float | None]] = {}
    for (month,), part in sorted(known.group_by("month")):
        if part.height < MONTH_ROWS:
            continue
        outcome = part.get_column(LABEL).to_numpy()
        found[str(month)] = {
            "static": _number(evaluate(part.get_column("static").to_numpy(), outcome)["auc"]),
            "kept_fresh": _number(evaluate(part.get_column(SCORE).to_numpy(), outcome)["auc"]),
        }
    return found


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
