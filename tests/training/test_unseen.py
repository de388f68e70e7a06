"""Scores of rows that the model has learned from, as if it had not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.spec import ModelSpec
from training.checkpoint import CHECKPOINT_FILE
from training.dataset import TrainingSet, all_rows
from training.fit import fit
from training.unseen import FOLDS, unseen_scores

EAGER = ModelSpec(family="lightgbm", trees=150, leaves=31, learning_rate=0.2, min_rows_per_leaf=2)
COARSE = ModelSpec(family="lightgbm", trees=5, leaves=3, learning_rate=0.1)


def spread(training_set: TrainingSet, rows: int, days: int) -> TrainingSet:
    """The first rows of training, over some days before the holdout's."""
    train = training_set.train.head(rows)
    at = [training_set.as_of - timedelta(days=2 + i * days / rows) for i in range(rows)]
    return replace(training_set, train=train.with_columns(pl.Series("event_timestamp", at)))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov's: the largest difference of the two distribution functions."""
    at = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(side), at, side="right") / side.size for side in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_scores_of_a_model_that_learned_its_rows_by_heart_become_those_of_new_rows(
    make_training_set: Callable[..., TrainingSet],
) -> None:
    known = spread(make_training_set(800), 800, 20)
    candidate = fit(known, EAGER, 7, None)
    new = candidate.predict(make_training_set(5_000, seed=77).train)
    own, found = candidate.predict(known.train), unseen_scores(candidate, known, known.train, EAGER, None)
    assert distance(own, new) > 0.15
    assert distance(found, new) < 0.08


def test_a_models_few_steps_are_not_replaced_by_those_of_others(
    tmp_path: Path, make_training_set: Callable[..., TrainingSet]
) -> None:
    """Few distinct scores: those of a model fitted on other rows are other ones, and would look like drift."""
    known = spread(make_training_set(3_000), 3_000, 20)
    candidate = fit(known, COARSE, 7, None)
    assert len(np.unique(candidate.predict(known.train))) < 60
    found = unseen_scores(candidate, known, known.train, COARSE, tmp_path)
    assert (found == candidate.predict(known.train)).all()
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))


def test_rows_that_were_not_learned_from_keep_the_candidates_score_in_whatever_order(
    make_training_set: Callable[..., TrainingSet],
) -> None:
    known = spread(make_training_set(600), 600, 20)
    known = replace(known, unlabelled=known.holdout.head(50).with_columns(entity_key=pl.col("entity_key") + "x"))
    candidate = fit(known, EAGER, 7, None)
    rows = all_rows(known).sample(fraction=1.0, shuffle=True, seed=3)
    found = pl.Series(unseen_scores(candidate, known, rows, EAGER, None))
    own = pl.Series(candidate.predict(rows))
    learned = rows.join(known.train, on=["entity_key", "event_timestamp"], how="semi").height
    assert learned == 600
    scored = rows.select("entity_key", "event_timestamp").with_columns(found.alias("found"), own.alias("own"))
    others = scored.join(known.train, on=["entity_key", "event_timestamp"], how="anti")
    assert (others["found"] == others["own"]).all()
    assert (scored["found"] != scored["own"]).sum() > 500
    again = unseen_scores(candidate, known, all_rows(known), EAGER, None)
    in_order = all_rows(known).select("entity_key", "event_timestamp").with_columns(pl.Series("again", again))
    both = scored.join(in_order, on=["entity_key", "event_timestamp"])
    assert both["found"].to_list() == pytest.approx(both["again"].to_list())


def test_a_model_whose_scores_of_new_rows_are_alike_needs_no_further_fits(
    tmp_path: Path, make_training_set: Callable[..., TrainingSet]
) -> None:
    known = spread(make_training_set(800), 800, 20)
    # The holdout is what it has learned from once more: exactly alike.
    same = replace(known, holdout=known.train.with_columns(pl.col("event_timestamp") + timedelta(days=40)))
    eager = fit(known, EAGER, 7, None)
    assert (unseen_scores(eager, same, same.train, EAGER, tmp_path / "same") == eager.predict(same.train)).all()
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))
    unseen_scores(eager, known, known.train, EAGER, tmp_path / "others")
    assert len(list(tmp_path.rglob(CHECKPOINT_FILE))) == FOLDS


def test_a_stretch_without_which_nothing_can_be_learned_keeps_the_candidates_scores(
    make_training_set: Callable[..., TrainingSet],
) -> None:
    """Every positive row lies on the first of four days."""
    known = spread(make_training_set(400), 400, 4)
    first = known.train["event_timestamp"].dt.date() == known.train["event_timestamp"].dt.date().min()
    known = replace(known, train=known.train.with_columns(first.alias("label")))
    candidate = fit(known, EAGER, 7, None)
    found = unseen_scores(candidate, known, known.train, EAGER, None)
    assert (found[first.to_numpy()] == candidate.predict(known.train)[first.to_numpy()]).all()
    assert np.isfinite(found).all()


def test_a_training_set_of_one_day_is_scored_as_it_is(make_training_set: Callable[..., TrainingSet]) -> None:
    known = spread(make_training_set(300), 300, 1)
    one = known.train.with_columns(pl.lit(known.as_of - timedelta(days=3)).alias("event_timestamp"))
    known = replace(
        known, train=one.with_columns(pl.col("event_timestamp").cast(known.train.schema["event_timestamp"]))
    )
    candidate = fit(known, EAGER, 7, None)
    assert (unseen_scores(candidate, known, known.train, EAGER, None) == candidate.predict(known.train)).all()
