from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perennial.errors import StageError, UsageError
from pipelines.spec import Feature, ModelSpec
from serving.predictor import load_predictor
from training.dataset import TrainingSet
from training.export import export
from training.fit import Candidate, fit
from training.lightgbm_trainer import round_thresholds

SMALL = {
    "lightgbm": ModelSpec(family="lightgbm", trees=60, leaves=8, min_rows_per_leaf=20),
    "pytorch": ModelSpec(family="pytorch", epochs=1, hidden=16),
}
X = Feature(name="x", kind="numeric")
STUMPS = ModelSpec(trees=20, leaves=4, min_rows_per_leaf=1, learning_rate=0.5)


def fit_x(values: np.ndarray, labels: np.ndarray) -> Candidate:
    rows = pl.DataFrame({"x": values, "label": labels})
    return fit(TrainingSet("x", datetime(2024, 5, 1, tzinfo=UTC), (X,), rows, rows, {}), STUMPS, 7, None)


@pytest.mark.parametrize("family", SMALL)
def test_an_exported_model_answers_as_the_fitted_one(family: str, training_set: TrainingSet, tmp_path: Path) -> None:
    candidate = fit(training_set, SMALL[family], 7, None)
    folder = export(candidate, tmp_path / "b", training_set.holdout, {"metrics": {"auc": 0.7}}, {"profile.json": b"{}"})
    predictor = load_predictor(str(folder))
    for rows in (training_set.holdout, training_set.holdout.head(1), training_set.holdout.clear()):
        scores = predictor.predict(rows)
        assert scores.shape == (rows.height,)
        np.testing.assert_allclose(scores, candidate.predict(rows), atol=1e-5, rtol=0)
    assert (folder / "profile.json").read_bytes() == b"{}"


def test_a_bundle_says_where_it_comes_from(training_set: TrainingSet, tmp_path: Path) -> None:
    candidate = fit(training_set, SMALL["lightgbm"], 7, None)
    metadata = {"metrics": {"auc": np.float64(0.7)}, "created": datetime(2024, 6, 1, tzinfo=UTC)}
    folder = export(candidate, tmp_path, training_set.holdout, metadata, {})
    described = json.loads((folder / "bundle.json").read_text())
    assert described["pipeline"] == "shops"
    assert described["family"] == "lightgbm"
    assert described["trained_as_of"] == "2024-05-01T00:00:00+00:00"
    assert described["created"] == "2024-06-01T00:00:00+00:00"
    assert described["metrics"] == {"auc": 0.7}
    assert described["label_rate"] == training_set.train["label"].mean()
    assert described["training_rows"] == 3_000


def neighbours() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring float32 numbers with opposite labels: every threshold lies between two neighbours."""
    low = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    values = np.repeat(np.r_[low, np.nextafter(low, np.float32(1))], 20)
    return values.astype(np.float64), np.repeat(np.r_[np.zeros(40, bool), np.ones(40, bool)], 20)


def test_splits_between_neighbouring_float32_numbers_survive(tmp_path: Path) -> None:
    values, labels = neighbours()
    candidate = fit_x(values, labels)
    scores = load_predictor(str(export(candidate, tmp_path, pl.DataFrame({"x": values}), {}))).predict(
        pl.DataFrame({"x": values})
    )
    np.testing.assert_allclose(scores, candidate.predict(pl.DataFrame({"x": values})), atol=1e-5, rtol=0)


def test_an_exported_model_that_differs_is_refused_with_the_number(tmp_path: Path) -> None:
    import lightgbm

    values, labels = neighbours()
    candidate = fit_x(values, labels)
    parameters = {"objective": "binary", "min_data_in_leaf": 1, "num_leaves": 40, "learning_rate": 0.5, "verbosity": -1}
    data = lightgbm.Dataset(values.reshape(-1, 1).astype(np.float32), labels)
    raw = lightgbm.train(parameters, data, 20)  # its thresholds are float64
    with pytest.raises(StageError, match=r"differs from the fitted one by 0\.\d+"):
        export(replace(candidate, model=raw), tmp_path, pl.DataFrame({"x": values}), {})
    assert not (tmp_path / "bundle.json").exists()


@pytest.mark.parametrize("centre", [-2.0, 2.0])
def test_a_value_that_was_never_missing_in_training_counts_as_zero_when_it_is(centre: float, tmp_path: Path) -> None:
    values = centre + np.random.default_rng(0).normal(size=500)
    candidate = fit_x(values, values > centre)
    folder = export(candidate, tmp_path, pl.DataFrame({"x": values}), {})
    missing, zero = load_predictor(str(folder)).predict(pl.DataFrame({"x": [None, 0.0]}, schema={"x": pl.Float64}))
    assert missing == zero
    assert (missing > 0.5) == (centre < 0)


def test_rounded_thresholds_change_no_prediction_on_float32_numbers() -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(2_000, 3)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    matrix[:, 2] = np.round(np.nan_to_num(matrix[:, 2]), 1)
    labels = np.nansum(matrix, axis=1) > 0
    raw = lightgbm.train({"objective": "binary", "verbosity": -1}, lightgbm.Dataset(matrix, labels), 30)
    rounded = lightgbm.Booster(model_str=round_thresholds(raw.model_to_string()))
    matrix[:5, 2] = np.nan
    np.testing.assert_array_equal(rounded.predict(matrix), raw.predict(matrix))


def test_a_model_without_a_split_can_be_exported(tmp_path: Path) -> None:
    values = np.ones(100)
    candidate = fit_x(values, np.arange(100) < 30)
    folder = export(candidate, tmp_path, pl.DataFrame({"x": values}), {})
    np.testing.assert_allclose(load_predictor(str(folder)).predict(pl.DataFrame({"x": [1.0, 5.0]})), 0.3, atol=1e-6)


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "../outside.json"])
def test_an_extra_file_cannot_take_the_place_of_the_bundles_own(
    name: str, training_set: TrainingSet, tmp_path: Path
) -> None:
    candidate = fit(training_set, SMALL["lightgbm"], 7, None)
    with pytest.raises(UsageError, match="extra file"):
        export(candidate, tmp_path, training_set.holdout, {}, {name: b""})


def test_an_export_without_a_sample_is_refused(training_set: TrainingSet, tmp_path: Path) -> None:
    candidate = fit(training_set, SMALL["lightgbm"], 7, None)
    with pytest.raises(UsageError, match="sample"):
        export(candidate, tmp_path, training_set.holdout.clear(), {})
