"""What became of every retrain, kept in the lake: the record that decisions on the next one are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import polars as pl

from features.lake import CREATED_TIMESTAMP, Lake
from pipelines.spec import PipelineSpec
from rollout.controller import rolled_back_by
from rollout.ledger import Entry, Ledger
from serving.predictor import BUNDLE_FILE, read_bundle_file
from training.decision import ChampionHistory

RETRAINS = "retrains"
BEGUN = "begun"


@dataclass(frozen=True)
class Retrain:
    """One retrain.

    Attributes:
        as_of: the moment as which its data was read (UTC).
        reason: why it was started.
        family: of the candidate.
        decision: "accepted" (becomes the challenger), "rejected" (worse than the champion) or "held" (a person decides).
        gate_reason: the gate's sentence.
        champion_auc: of the champion on the holdout; NaN when there was none, or the gate does not look at the AUC.
        candidate_auc: of the candidate on the same rows; NaN when the gate does not look at the AUC.
        version: the candidate's version in the registry.
    """

    as_of: datetime
    reason: str
    family: str
    decision: str
    gate_reason: str
    champion_auc: float
    candidate_auc: float
    version: str


def record_begin(lake: Lake, as_of: datetime, reason: str, family: str, created: datetime) -> None:
    """Keep that a retrain begins: one that fails or is killed must not be forgotten."""
    record_retrain(lake, Retrain(as_of, reason, family, BEGUN, "", math.nan, math.nan, ""), created)


def record_retrain(lake: Lake, retrain: Retrain, created: datetime) -> None:
    """Keep what became of a retrain."""
    row = pl.DataFrame([asdict(retrain)]).with_columns(
        pl.col("as_of").cast(pl.Datetime("us", "UTC")),
        pl.lit(created).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    )
    lake.append(RETRAINS, row, partition_by=None)


def retrains(lake: Lake) -> list[Retrain]:
    """Every retrain that ended, oldest first."""
    return [r for r in _all(lake) if r.decision != BEGUN]


def _all(lake: Lake) -> list[Retrain]:
    """The begin and the end of every retrain, by as_of."""
    if not lake.exists(RETRAINS):
        return []
    rows = lake.read(RETRAINS).sort("as_of", CREATED_TIMESTAMP).drop(CREATED_TIMESTAMP)
    return [Retrain(**row) for row in rows.iter_rows(named=True)]


def durations(lake: Lake) -> list[timedelta]:
    """How long each retrain took by the clock, oldest first; those that were begun more than once are left out."""
    if not lake.exists(RETRAINS):
        return []
    begun = pl.col("decision") == BEGUN
    took = (
        lake.read(RETRAINS, columns=("as_of", "decision", CREATED_TIMESTAMP))
        .group_by("as_of")
        .agg(
            pl.col(CREATED_TIMESTAMP).filter(begun).alias("begins"),
            pl.col(CREATED_TIMESTAMP).filter(~begun).alias("ends"),
        )
        .filter(pl.col("begins").list.len() == 1, pl.col("ends").list.len() == 1)
        .select(pl.col("begins").list.first(), pl.col("ends").list.first())
        .sort("ends")
    )
    return [end - begin for begin, end in took.iter_rows()]


def champion_history(lake: Lake, ledger: Ledger, spec: PipelineSpec, as_of: datetime) -> ChampionHistory:
    """What a retrain decision needs to know about the model that serves."""
    state = ledger.state(spec.name)
    trained = trained_as_of(state.champion.uri) if state and state.champion else None
    label_table = spec.event(spec.label.topic).table
    new = lake.count(label_table, trained, as_of)
    attempts = [r for r in _all(lake) if r.as_of <= as_of]
    finished = [r for r in attempts if r.decision != BEGUN]
    ended = {r.as_of for r in finished}
    # A retrain of this very moment that did not end is the one that asks, run anew: it goes on.
    unended = {r.as_of for r in attempts} - ended - {as_of}
    return ChampionHistory(
        trained_as_of=trained,
        last_attempt=max(ended, default=None),
        new_labels=new,
        rollout_in_flight=bool(state and state.challenger),
        last_unended=max(unended, default=None),
        candidate=_candidate(finished[-1], ledger.history(spec.name), spec.name) if finished else "",
    )


def _candidate(last: Retrain, traffic: Sequence[Entry], pipeline: str) -> str:
    """What became of a retrain's candidate that does not serve, as a clause."""
    if last.decision == "rejected":
        return f"version {last.version}, which it made, was rejected by its gate ({last.gate_reason})"
    mend = f"`perennial release {pipeline} --version {last.version}` puts it behind the canary"
    if last.decision == "held":
        return f"version {last.version}, which it made, is held by its gate ({last.gate_reason}); {mend}"
    rollback = rolled_back_by(traffic, last.version)
    if rollback is None:
        return ""
    return (
        f"version {last.version}, which it made, passed its gate and was rolled back ({rollback.reason}); {mend} again"
    )


def trained_as_of(uri: str) -> datetime:
    """The moment as which a bundle's training data was read (UTC).

    Raises:
        StateError: there is no bundle at the address.
    """
    return datetime.fromisoformat(json.loads(read_bundle_file(uri, BUNDLE_FILE))["trained_as_of"])
