"""Scored events -> features as they were known -> the champion -> predictions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl
from prefect import flow, get_run_logger

from features.labels import PREDICTIONS
from flows.context import champion, moment, open_context, predictor
from flows.stage import stage
from rollout.ledger import Model
from serving import batch


@dataclass(frozen=True)
class ScoreSummary:
    """What one scoring run did: predictions made, and by which version (None = there is no champion yet)."""

    scored_rows: int
    version: str | None


@stage()
def find_unscored(pipeline: str, as_of: datetime) -> pl.DataFrame:
    """Scored events that have no prediction yet."""
    context = open_context(pipeline)
    return batch.unscored(context.lake, context.spec, as_of)


@stage()
def predict(pipeline: str, events: pl.DataFrame, model: Model, as_of: datetime) -> int:
    """Score the events with the champion and keep the predictions with their features."""
    context = open_context(pipeline)
    predictions = batch.score(context.settings, context.spec, events, predictor(model.uri), model.version, as_of)
    if predictions.height:
        context.lake.append(PREDICTIONS, predictions)
    return predictions.height


@flow(name="score", flow_run_name="score {pipeline}")
async def score(pipeline: str = "flights", as_of: datetime | None = None) -> ScoreSummary:
    """Score the events that came in since the last run.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The run's clock in UTC; none = now. Later events are left for a later run.
    """
    now = moment(as_of)
    model = champion(open_context(pipeline))
    if model is None:
        get_run_logger().warning(
            "nothing was scored: %s has no champion yet; run `perennial retrain %s`", pipeline, pipeline
        )
        return ScoreSummary(0, None)
    return ScoreSummary(await predict(pipeline, await find_unscored(pipeline, now), model, now), model.version)
