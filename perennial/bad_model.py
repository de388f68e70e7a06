"""A release that must not survive: fitted on inverted labels, a mistake that a type checker and a smoke test let pass."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta

import polars as pl

from features.labels import LABEL
from flows.context import Context
from training import registry
from training.dataset import build_training_set
from training.export import export
from training.fit import fit
from training.registry import ModelVersion

HISTORY = timedelta(days=21)


def register_bad_model(context: Context, as_of: datetime) -> ModelVersion:
    """Fit a model on inverted labels and register it, without holding it against the champion."""
    spec = context.spec
    recent = spec.model_copy(
        update={"model": spec.model.model_copy(update={"history_s": int(HISTORY.total_seconds())})}
    )
    training_set = build_training_set(recent, context.settings, context.lake, as_of)
    inverted = training_set.train.with_columns(~pl.col(LABEL))
    bad = type(training_set)(
        training_set.pipeline, as_of, training_set.features, inverted, training_set.holdout, training_set.snapshots
    )
    candidate = fit(bad, spec.model, spec.model.seed, None)
    folder = context.settings.root / "bad-release"
    bundle = export(candidate, folder, inverted.head(500), {"labels": "inverted"})
    version = registry.register(
        context.settings.mlflow_tracking_uri,
        spec.name,
        bundle,
        params={"labels": "inverted"},
        metrics={},
        tags={"as_of": as_of.isoformat(), "gate": "bypassed"},
        lineage={},
    )
    shutil.rmtree(folder, ignore_errors=True)
    return version
