"""What became of every retrain, kept in the lake: the record that decisions on the next one are made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime

import polars as pl

from features.lake import CREATED_TIMESTAMP, Lake
from pipelines.spec import PipelineSpec
from rollout.ledger import Ledger
from serving.predictor import BUNDLE_FILE, read_bundle_file
from training.decision import ChampionHistory

RETRAINS = "retrains"


@dataclass(frozen=True)
class Retrain:
    """One retrain.

    Attributes:
        as_of: the moment as which its data was read (UTC).
        reason: why it was started.
        family: of the candidate.
        decision: "accepted" (becomes the challenger), "rejected" (worse than the champion) or "held" (a person decides).
        gate_reason: the gate's sentence.
        champion_auc: of the champion on the holdout; NaN when there was none.
        candidate_auc: of the candidate on the same rows.
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


def record_retrain(lake: Lake, retrain: Retrain, created: datetime) -> None:
    """Keep what became of a retrain."""
    row = pl.DataFrame([asdict(retrain)]).with_columns(
        pl.col("as_of").cast(pl.Datetime("us", "UTC")),
        pl.lit(created).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    )
    lake.append(RETRAINS, row, partition_by=None)


def retrains(lake: Lake) -> list[Retrain]:
    """Every retrain there was, oldest first."""
    if not lake.exists(RETRAINS):
        return []
    rows = lake.read(RETRAINS).sort("as_of", CREATED_TIMESTAMP).drop(CREATED_TIMESTAMP)
    return [Retrain(**row) for row in rows.iter_rows(named=True)]


def champion_history(lake: Lake, ledger: Ledger, spec: PipelineSpec, as_of: datetime) -> ChampionHistory:
    """What a retrain decision needs to know about the model that serves."""
    state = ledger.state(spec.name)
    trained = trained_as_of(state.champion.uri) if state and state.champion else None
    label_table = spec.event(spec.label.topic).table
    new = lake.count(label_table, trained, as_of)
    attempts = [r.as_of for r in retrains(lake) if r.as_of <= as_of]
    return ChampionHistory(
        trained_as_of=trained,
        last_attempt=max(attempts, default=None),
        new_labels=new,
        rollout_in_flight=bool(state and state.challenger),
    )


def trained_as_of(uri: str) -> datetime:
    """The moment as which a bundle's training data was read (UTC).

    Raises:
        StateError: there is no bundle at the address.
    """
    return datetime.fromisoformat(json.loads(read_bundle_file(uri, BUNDLE_FILE))["trained_as_of"])
