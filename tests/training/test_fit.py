from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from perennial.errors import StageError
from pipelines.spec import ModelSpec
from training.checkpoint import CHECKPOINT_FILE
from training.dataset import TrainingSet
from training.fit import fit

ROOT = Path(__file__).parents[2]
SMALL = {
    "lightgbm": ModelSpec(family="lightgbm", trees=120, leaves=8, min_rows_per_leaf=20),
    "pytorch": ModelSpec(family="pytorch", epochs=4, hidden=16),
}
FAMILIES = pytest.mark.parametrize("family", SMALL)


@FAMILIES
def test_a_fit_learns_what_decides_the_label(family: str, training_set: TrainingSet) -> None:
    candidate = fit(training_set, SMALL[family], 7, None)
    scores = candidate.predict(training_set.holdout)
    assert scores.shape == (1_000,)
    assert scores.dtype == np.float64
    assert roc_auc_score(training_set.holdout["label"].to_numpy(), scores) > 0.75
    assert candidate.training_rows == 3_000
    assert candidate.label_rate == training_set.train["label"].mean()


@FAMILIES
def test_the_same_seed_gives_the_same_model(family: str, training_set: TrainingSet) -> None:
    one, other = (fit(training_set, SMALL[family], 7, None).predict(training_set.holdout) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_another_seed_gives_another_network(training_set: TrainingSet) -> None:
    one, other = (fit(training_set, SMALL["pytorch"], s, None).predict(training_set.holdout) for s in (1, 2))
    assert np.abs(one - other).max() > 1e-3


def test_the_trees_do_not_depend_on_the_number_of_threads(
    training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = []
    for cores in (2, 4, 6):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        scores.append(fit(training_set, SMALL["lightgbm"], 7, None).predict(training_set.holdout))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


FIT_IN_A_PROCESS = """
import sys, polars as pl
from datetime import UTC, datetime
from pathlib import Path
from pipelines.spec import Feature, ModelSpec
from training.dataset import TrainingSet
from training.fit import fit
import json
rows = pl.read_parquet(sys.argv[1])
features = tuple(Feature(**f) for f in json.loads(sys.argv[2]))
training_set = TrainingSet("shops", datetime(2024, 5, 1, tzinfo=UTC), features, rows, rows, {})
fit(training_set, ModelSpec.model_validate_json(sys.argv[3]), 7, Path(sys.argv[4]))
"""


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(family="lightgbm", trees=600, leaves=8, min_rows_per_leaf=20),
        ModelSpec(family="pytorch", epochs=60, hidden=16),
    ],
    ids=["lightgbm", "pytorch"],
)
def test_a_fit_killed_midway_ends_as_the_model_of_an_uninterrupted_one(
    spec: ModelSpec, make_training_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    training_set = make_training_set(2_000)
    training_set.train.write_parquet(tmp_path / "rows.parquet")
    features = json.dumps([f.model_dump() for f in training_set.features])
    folder = tmp_path / "checkpoint"
    arguments = [str(tmp_path / "rows.parquet"), features, spec.model_dump_json(), str(folder)]
    process = subprocess.Popen([sys.executable, "-c", FIT_IN_A_PROCESS, *arguments])
    deadline = time.monotonic() + 60
    while not (folder / CHECKPOINT_FILE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = json.loads((folder / CHECKPOINT_FILE).read_bytes().split(b"\n")[0])["step"]
    assert 0 < step < (spec.trees if spec.family == "lightgbm" else spec.epochs)

    resumed = fit(training_set, spec, 7, folder).predict(training_set.holdout)
    uninterrupted = fit(training_set, spec, 7, None).predict(training_set.holdout)
    np.testing.assert_array_equal(resumed, uninterrupted)


@FAMILIES
def test_a_finished_fit_is_not_done_again(
    family: str, training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(training_set, SMALL[family], 7, tmp_path).predict(training_set.holdout)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("lightgbm.train", refuse)
    monkeypatch.setattr("torch.optim.Adam.step", refuse)
    np.testing.assert_array_equal(fit(training_set, SMALL[family], 7, tmp_path).predict(training_set.holdout), first)


@FAMILIES
def test_the_checkpoint_of_other_data_is_ignored(family: str, training_set: TrainingSet, tmp_path: Path) -> None:
    flipped = replace(training_set, train=training_set.train.with_columns(~pl.col("label")))
    fit(flipped, SMALL[family], 7, tmp_path)
    resumed = fit(training_set, SMALL[family], 7, tmp_path).predict(training_set.holdout)
    np.testing.assert_array_equal(resumed, fit(training_set, SMALL[family], 7, None).predict(training_set.holdout))


def test_the_checkpoint_of_another_spec_is_ignored(training_set: TrainingSet, tmp_path: Path) -> None:
    fit(training_set, SMALL["lightgbm"], 7, tmp_path)
    more = SMALL["lightgbm"].model_copy(update={"trees": 150, "learning_rate": 0.2})
    resumed = fit(training_set, more, 7, tmp_path).predict(training_set.holdout)
    np.testing.assert_array_equal(resumed, fit(training_set, more, 7, None).predict(training_set.holdout))


def test_the_checkpoint_of_other_code_is_ignored(make_training_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    training_set = make_training_set(500)
    training_set.train.write_parquet(tmp_path / "rows.parquet")
    shutil.copytree(ROOT / "training", tmp_path / "image" / "training")
    trainer = tmp_path / "image" / "training" / "torch_trainer.py"
    trainer.write_text(trainer.read_text().replace("LEARNING_RATE = 2e-3", "LEARNING_RATE = 9e-2"))
    features = json.dumps([f.model_dump() for f in training_set.features])
    spec, folder = SMALL["pytorch"], tmp_path / "checkpoint"
    arguments = [str(tmp_path / "rows.parquet"), features, spec.model_dump_json(), str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'image'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", FIT_IN_A_PROCESS, *arguments], env=environment, cwd=tmp_path, check=True)
    assert (folder / CHECKPOINT_FILE).exists()
    resumed = fit(training_set, spec, 7, folder).predict(training_set.holdout)
    np.testing.assert_array_equal(resumed, fit(training_set, spec, 7, None).predict(training_set.holdout))


def test_a_fit_leaves_the_callers_random_numbers_and_threads_alone(training_set: TrainingSet) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit(training_set, SMALL["pytorch"], 7, None)
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads


def test_a_network_takes_missing_numbers_unseen_categories_and_absurd_values(training_set: TrainingSet) -> None:
    candidate = fit(training_set, SMALL["pytorch"], 7, None)
    rows = training_set.holdout.head(3).with_columns(
        shop=pl.lit("never seen"), visits=pl.lit(None, dtype=pl.Int64), price=pl.Series([None, 1e30, float("inf")])
    )
    scores = candidate.predict(rows)
    assert np.isfinite(scores).all()
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.clear(), "0 of 0 training rows are positive"),
        (lambda rows: rows.filter("label"), "nothing to learn for shops"),
        (lambda rows: rows.with_columns(label=pl.lit(None, dtype=pl.Boolean)), "3000 of 3000 training rows"),
    ],
    ids=["no rows", "one kind of label", "missing labels"],
)
def test_nothing_to_learn_is_told(
    change: Callable[[pl.DataFrame], pl.DataFrame], said: str, training_set: TrainingSet
) -> None:
    with pytest.raises(StageError, match=said):
        fit(replace(training_set, train=change(training_set.train)), SMALL["lightgbm"], 7, None)


def test_a_network_fitted_on_a_gpu_is_resumed_and_answers_on_the_cpu(training_set: TrainingSet, tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; there is none")
    first = fit(training_set, SMALL["pytorch"], 7, tmp_path).predict(training_set.holdout)
    again = fit(training_set, SMALL["pytorch"], 7, tmp_path).predict(training_set.holdout)
    np.testing.assert_array_equal(first, again)
    assert roc_auc_score(training_set.holdout["label"].to_numpy(), first) > 0.75
