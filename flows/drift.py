"""The last windows of a pipeline's predictions, held against what a model was trained on; for the flow and for a terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from features.labels import PREDICTIONS, predictions
from flows.context import Context, predictor
from perennial.errors import StateError, UsageError
from pipelines.spec import DriftPolicy
from rollout.ledger import Model
from serving.batch import MODEL_VERSION, SCORE
from serving.predictor import BUNDLE_FILE, read_bundle_file
from validation.drift import DriftVerdict, detect_drift
from validation.hours import HourlyProfiles, hour_of, moment_of
from validation.profile import ReferenceProfile
from validation.profile_log import profiles_between
from validation.windows import windows_before

REFERENCE_FILE = "reference_profile.json"
REFERENCE_HOURS_FILE = "reference_hours.parquet"


@dataclass(frozen=True)
class DriftCheck:
    """What was compared, and what came of it.

    Attributes:
        drift: the verdict and every column.
        reference: what the model was trained on.
        current: the hours that were looked at.
        since: begin of the oldest window (UTC).
        newest_since: begin of the newest window.
        until: end of the newest: the last whole hour.
    """

    drift: DriftVerdict
    reference: ReferenceProfile
    current: HourlyProfiles
    since: datetime
    newest_since: datetime
    until: datetime


def check_drift(context: Context, model: Model, until: datetime, policy: DriftPolicy, created: datetime) -> DriftCheck:
    """Judge the windows before a moment.

    Args:
        context: of the pipeline.
        model: whose reference they are held against; its scores are compared, whoever made the predictions.
        until: UTC.
        policy: how many windows, how long, and what counts as drift.
        created: when this is done.

    Raises:
        StateError: the model has no reference that can be read.
    """
    reference = read_reference(model.uri)
    importance = json.loads(read_bundle_file(model.uri, BUNDLE_FILE)).get("importance")
    end = moment_of(hour_of(until))
    begin = end - timedelta(seconds=policy.watched_s)

    def scored(since: datetime, before: datetime) -> pl.DataFrame:
        return scored_by(context, model, since, before)

    current = profiles_between(context.lake, reference, PREDICTIONS, begin, end, scored, created)
    windows = windows_before(current, reference, end, policy)
    drift = detect_drift(reference, windows, policy, importance)
    return DriftCheck(drift, reference, current, begin, end - timedelta(seconds=policy.window_s), end)


def scored_by(context: Context, model: Model, since: datetime, before: datetime) -> pl.DataFrame:
    """Predictions of [since, before) with the scores that a model gives, whoever made them.

    Another model may have made some of them, whose scores this one's reference does not describe. If it did not know a
    feature of this one, which so was perhaps not worked out for its rows, they cannot tell how this one's features are
    distributed, and are left out.
    """
    rows = predictions(context.lake, since, before)
    rows = rows.with_columns(pl.lit(None).alias(f.name) for f in context.spec.features if f.name not in rows.columns)
    made_by = set(rows.get_column(MODEL_VERSION).unique()) - {model.version}
    unfit = [version for version in made_by if not _knows_all(context, version)]
    rows = rows.remove(pl.col(MODEL_VERSION).is_in(unfit))
    others = rows.get_column(MODEL_VERSION).ne_missing(model.version)
    if others.any():
        own = pl.Series(SCORE, predictor(model.uri).predict(rows), dtype=pl.Float64)
        rows = rows.with_columns(pl.when(others).then(own).otherwise(SCORE).alias(SCORE))
    return rows


def _knows_all(context: Context, version: str) -> bool:
    """Whether a version has every feature of the pipeline, as far as it is known: what it lacks counts as missing if not."""
    entries = context.ledger.history(context.spec.name)
    uris = {m.version: m.uri for e in entries for m in (e.champion, e.challenger) if m}
    try:
        known = predictor(uris[version]).feature_names
    except (KeyError, StateError):  # never released, or its bundle is gone
        return True
    return set(context.spec.feature_names) <= set(known)


def some_rows(context: Context, model: Model, check: DriftCheck, most: int) -> pl.DataFrame:
    """Rows of the newest window, at most about `most`: those of hours drawn at random, the same each time."""
    hours = np.arange(hour_of(check.newest_since), hour_of(check.until))
    first = slice(0, len(check.reference.features[0].labels))
    drawn: list[int] = []
    rows = 0
    for hour in np.random.default_rng(int(hours[0])).permutation(hours):
        here = int(check.current.between(int(hour), int(hour) + 1)[first].sum())
        if here and (not drawn or rows + here <= most):
            drawn.append(int(hour))
            rows += here
    if not drawn:
        return scored_by(context, model, check.newest_since, check.newest_since)
    if len(drawn) == len(hours):
        return scored_by(context, model, check.newest_since, check.until)
    return pl.concat([scored_by(context, model, moment_of(h), moment_of(h + 1)) for h in sorted(drawn)])


def reference_files(reference: ReferenceProfile) -> dict[str, bytes]:
    """The reference as files of a bundle, for `read_reference`."""
    if reference.hours is None:
        raise UsageError("the reference has no hours; build it with the rows' timestamp_column.")
    return {REFERENCE_FILE: reference.to_json().encode(), REFERENCE_HOURS_FILE: reference.hours.to_parquet()}


def read_reference(uri: str) -> ReferenceProfile:
    """The reference that a model's bundle carries; StateError when it has none."""
    reference = ReferenceProfile.from_json(read_bundle_file(uri, REFERENCE_FILE).decode())
    hours = HourlyProfiles.from_parquet(read_bundle_file(uri, REFERENCE_HOURS_FILE), reference.fingerprint)
    return ReferenceProfile(reference.features, reference.counts, hours)
