"""Stream scoring: predictions for the scored events that came in since the last run."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from features.labels import PREDICTIONS
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, first_of_each
from features.store import ENTITY_KEY, historical
from perennial.settings import Settings
from pipelines.spec import PipelineSpec
from serving.predictor import Predictor

SCORE = "score"
MODEL_VERSION = "model_version"


def unscored(lake: Lake, spec: PipelineSpec, as_of: datetime) -> pl.DataFrame:
    """Scored events up to `as_of` that have no prediction yet, each once: by key and event time.

    An event older than the label's horizon is left alone: its outcome is known or will never be, so a prediction could
    no longer serve anybody.
    """
    event = spec.event(spec.scored.topic)
    since = as_of - timedelta(seconds=spec.label.horizon_s)
    asked = first_of_each(lake.read(event.table, since=since, until=as_of), spec.scored.key)
    if not lake.exists(PREDICTIONS):
        return asked
    done = lake.read(PREDICTIONS, since=since, until=as_of, columns=(ENTITY_KEY, EVENT_TIMESTAMP))
    return asked.join(
        done,
        left_on=[spec.scored.key, EVENT_TIMESTAMP],
        right_on=[ENTITY_KEY, EVENT_TIMESTAMP],
        how="anti",
        nulls_equal=True,  # or an event without a key would be scored again by every run
        maintain_order="left",
    )


def score(
    settings: Settings, spec: PipelineSpec, scored: pl.DataFrame, predictor: Predictor, version: str, as_of: datetime
) -> pl.DataFrame:
    """Predictions for scored events, with the features they were made from.

    Args:
        scored: scored events, in their event's schema.
        predictor: the champion.
        version: the champion's version, kept with each prediction.
        as_of: the run's clock, kept as `created_timestamp`.

    Returns:
        One row an event: key, event time, the model's inputs, `score`, `model_version`, `created_timestamp`.
    """
    frame = historical(spec, settings, scored, {})
    return frame.with_columns(
        pl.Series(SCORE, predictor.predict(frame), dtype=pl.Float64),
        pl.lit(version).alias(MODEL_VERSION),
        pl.lit(as_of).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    ).sort(EVENT_TIMESTAMP, ENTITY_KEY)
