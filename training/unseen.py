"""Scores as new rows get them, for rows that a model has learned from.

A model is surer of rows it has seen than of rows it has not. Were its scores on both laid side by side, the new ones would
look drifted from the first day on: by a PSI of 0.02 with 900 training rows a day, 0.27 with 40.
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
from pipelines.spec import ModelSpec
from training.dataset import TrainingSet
from training.fit import Candidate, fit
from training.gate import evaluate

FOLDS = 4
NO_BETTER = 0.01
"""A model whose AUC is no more than this higher on rows it has learned from has not learned them by heart."""


def unseen_scores(
    candidate: Candidate, training_set: TrainingSet, rows: pl.DataFrame, spec: ModelSpec, checkpoint: Path | None
) -> npt.NDArray[np.float64]:
    """The scores that rows would get had the model not learned from them.

    Rows that it did not learn from are scored by the candidate. Those that it did are parted by days into `FOLDS` stretches,
    each of which is scored by a model fitted on everything else (cross-fitting). That is left out where the candidate is
    as good on the holdout as on what it learned from, as large data make it: its own scores will do then.

    Args:
        candidate: the model.
        training_set: what it was fitted on.
        rows: to be scored, with the training set's columns; each is in `training_set.train` or not by its `entity_key` and
            `event_timestamp`.
        spec: how the candidate was fitted.
        checkpoint: folder for the progress of the further fits; None keeps none.

    Returns:
        Probabilities, shape (n,). Where a stretch cannot be left out, because what remains holds labels of one kind only,
        its scores are the candidate's.
    """
    which = [ENTITY_KEY, EVENT_TIMESTAMP]
    scores = candidate.predict(rows)
    numbered = rows.select(which).with_row_index("row")
    seen = numbered.join(training_set.train.select(which).unique(), on=which, how="semi").sort("row")
    place = seen.get_column("row").to_numpy()
    holdout = training_set.holdout
    on_seen = evaluate(scores[place], rows[place].get_column(LABEL).to_numpy())
    on_new = evaluate(candidate.predict(holdout), holdout.get_column(LABEL).to_numpy())
    if on_seen["auc"] - on_new["auc"] <= NO_BETTER:  # not where one of them is not known
        return scores
    days = seen.get_column(EVENT_TIMESTAMP).dt.date()
    for number, stretch in enumerate(np.array_split(days.unique().sort(), FOLDS)):
        fold = seen.filter(days.is_in(stretch.tolist()))
        others = training_set.train.join(fold, on=which, how="anti")
        if not fold.height or others.get_column(LABEL).n_unique() < 2:
            continue
        part = replace(training_set, train=others)
        model = fit(part, spec, candidate.seed, checkpoint and checkpoint / f"without-{number}")
        scores[fold.get_column("row").to_numpy()] = model.predict(rows[fold.get_column("row")])
    return scores
