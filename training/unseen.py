"""Scores as new rows get them, for rows that a model has learned from.

A model is surer of rows it has seen than of rows it has not. Were its scores on both laid side by side, the new ones would
look drifted from the first day on: by a PSI of up to 0.3 with 40 training rows a day.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from features.labels import LABEL
from features.lake import EVENT_TIMESTAMP
from features.store import ENTITY_KEY
from pipelines.spec import DriftPolicy, ModelSpec
from training.dataset import TrainingSet
from training.fit import Candidate, fit
from validation.profile import SCORE, build_reference, profile
from validation.psi import psi

FOLDS = 4
ALIKE_PSI = 0.1
"""Scores of known and of new rows that are nearer than this make nobody look (`DriftPolicy.warn_at`): further fits do not pay."""


def unseen_scores(
    candidate: Candidate, training_set: TrainingSet, rows: pl.DataFrame, spec: ModelSpec, checkpoint: Path | str | None
) -> npt.NDArray[np.float64]:
    """The scores that rows would get had the model not learned from them.

    Rows that it did not learn from are scored by the candidate. Those that it did are parted by days into `FOLDS` stretches,
    each of which is scored by a model fitted on everything else (cross-fitting). But those models are others, whose scores
    may step otherwise. So of the two the scores are taken that are nearer to the candidate's on the holdout, which are
    known to be of new rows. Where the candidate's own are near them already, as large data make them, they do without
    further fits.

    Args:
        candidate: the model.
        training_set: what it was fitted on.
        rows: to be scored, with the training set's columns; each is in `training_set.train` or not by its `entity_key` and
            `event_timestamp`.
        spec: how the candidate was fitted.
        checkpoint: folder, or s3:// address of one, for the progress of the further fits; None keeps none.

    Returns:
        Probabilities, shape (n,). Where a stretch cannot be left out, because what remains holds labels of one kind only,
        its scores are the candidate's.
    """
    which = [ENTITY_KEY, EVENT_TIMESTAMP]
    scores = candidate.predict(rows)
    refitted = scores.copy()
    numbered = rows.select(which).with_row_index("row")
    seen = numbered.join(training_set.train.select(which).unique(), on=which, how="semi").sort("row")
    place = seen.get_column("row").to_numpy()
    known = candidate.predict(training_set.holdout)
    if _apart(scores[place], known) < ALIKE_PSI:  # not where one of them has no rows
        return scores
    days = seen.get_column(EVENT_TIMESTAMP).dt.date()
    for number, stretch in enumerate(np.array_split(days.unique().sort(), FOLDS)):
        fold = seen.filter(days.is_in(stretch.tolist()))
        others = training_set.train.join(fold, on=which, how="anti")
        if not fold.height or others.get_column(LABEL).n_unique() < 2:
            continue
        part = replace(training_set, train=others)
        model = fit(part, spec, candidate.seed, f"{checkpoint}/without-{number}" if checkpoint else None)
        refitted[fold.get_column("row").to_numpy()] = model.predict(rows[fold.get_column("row")])
    return refitted if _apart(refitted[place], known) < _apart(scores[place], known) else scores


def _apart(scores: npt.NDArray[np.float64], known: npt.NDArray[np.float64]) -> float:
    """PSI of known scores against such a reference; NaN where one of them has no rows."""
    reference = build_reference(pl.DataFrame({SCORE: scores}), (), DriftPolicy())
    counted = profile(pl.DataFrame({SCORE: known}), reference)
    return psi(reference.of(reference.profile, SCORE).present, reference.of(counted, SCORE).present)
