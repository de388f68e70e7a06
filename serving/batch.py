"""Stream scoring: predictions for the scored events that came in since the last run."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from features.labels import PREDICTIONS
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake, first_of_each
from features.once import ROW, append_once, no_rows, without
from features.store import ENTITY_KEY
from pipelines.spec import PipelineSpec
from serving.predictor import Predictor
from validation.contract import Kind, fingerprint
from validation.quarantine import CONTRACT, quarantined_keys

SCORE = "score"
MODEL_VERSION = "model_version"
# What a prediction has beside its feature row.
PREDICTION_COLUMNS: dict[str, Kind] = dict.fromkeys((SCORE, MODEL_VERSION, CONTRACT, CREATED_TIMESTAMP), "any")


def scored_events(lake: Lake, spec: PipelineSpec, since: datetime, until: datetime) -> pl.DataFrame:
    """Events of [since, until) that ask for a prediction, each once: by key and event time."""
    return first_of_each(lake.read(spec.event(spec.scored.topic).table, since=since, until=until), spec.scored.key)


def unscored(lake: Lake, spec: PipelineSpec, as_of: datetime) -> pl.DataFrame:
    """Scored events up to `as_of` that have no prediction yet, each once: by key and event time.

    What the contract, as it is now, has quarantined is not looked at again; a changed one tries it anew. An event older
    than the label's horizon is left alone: its outcome is known or will never be, so a prediction could no longer serve
    anybody.
    """
    since = as_of - timedelta(seconds=spec.label.horizon_s)
    asked = scored_events(lake, spec, since, as_of)
    asked = without(asked, quarantined_keys(lake, fingerprint(spec.contract), since, as_of), spec.scored.key)
    return without(asked, predicted_keys(lake, since, as_of), spec.scored.key)


def predicted_keys(lake: Lake, since: datetime | None, until: datetime | None) -> pl.DataFrame:
    """Key and event time of the predictions of [since, until)."""
    return lake.read(PREDICTIONS, since, until, columns=ROW) if lake.exists(PREDICTIONS) else no_rows()


def keep_predictions(lake: Lake, made: pl.DataFrame) -> int:
    """Keep predictions, each once, whoever else scores the same events now; how many were not there yet.

    Raises:
        ConflictError: other runs kept theirs in between, again and again.
    """
    return append_once(lake, PREDICTIONS, made, lambda since, until: predicted_keys(lake, since, until))


def feature_columns(spec: PipelineSpec) -> dict[str, Kind]:
    """The columns of feature rows, each with its kind: what a batch must look like."""
    return {ENTITY_KEY: "any", EVENT_TIMESTAMP: "any", **{f.name: f.kind for f in spec.features}}


def score(spec: PipelineSpec, rows: pl.DataFrame, predictor: Predictor, version: str, as_of: datetime) -> pl.DataFrame:
    """Predictions for feature rows, with the features they were made from.

    Args:
        spec: the pipeline, by whose contract the rows were judged.
        rows: feature rows that met it, as of `features.store.historical`.
        predictor: the champion.
        version: the champion's version, kept with each prediction.
        as_of: the run's clock, kept as `created_timestamp`.

    Returns:
        One row each: key, event time, the model's inputs, `score`, `model_version`, `contract` (its fingerprint),
        `created_timestamp`.
    """
    return rows.with_columns(
        pl.Series(SCORE, predictor.predict(rows), dtype=pl.Float64),
        pl.lit(version).alias(MODEL_VERSION),
        pl.lit(fingerprint(spec.contract)).alias(CONTRACT),
        pl.lit(as_of).cast(pl.Datetime("us", "UTC")).alias(CREATED_TIMESTAMP),
    ).sort(EVENT_TIMESTAMP, ENTITY_KEY)
