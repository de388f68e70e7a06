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

EAGER = ModelSpec(family="lightgbm", trees=150, leaves=31, learning_rate=0.2)


def spread(training_set: TrainingSet, rows: int, days: int) -> TrainingSet:
    """The first rows of training, over some days before the holdout's."""
    train = training_set.train.head(rows)
    at = [training_set.as_of - timedelta(days=2 + i * days / rows) for i in range(rows)]
    return replace(training_set, train=train.with_columns(pl.Series("event_timestamp", at)))


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Share of pairs in the right order, counted pair by pair."""
    above = score[label][:, None] - score[~label][None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def test_a_model_that_learned_noise_by_heart_does_not_know_it_here(
    make_training_set: Callable[..., TrainingSet],
) -> None:
    noise = spread(make_training_set(800), 800, 20)
    label = np.random.default_rng(4).random(800) < 0.4
    noise = replace(noise, train=noise.train.with_columns(pl.Series("label", label)))
    candidate = fit(noise, EAGER, 7, None)
    found = unseen_scores(candidate, noise, noise.train, EAGER, None)
    assert auc(candidate.predict(noise.train), label) > 0.85
    assert 0.42 < auc(found, label) < 0.58


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


def test_a_model_that_is_as_good_on_new_rows_needs_no_further_fits(
    tmp_path: Path, make_training_set: Callable[..., TrainingSet]
) -> None:
    known = spread(make_training_set(3_000), 3_000, 20)
    # The holdout is what it has learned from once more: exactly as good.
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
