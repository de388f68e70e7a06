from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pytest

from perennial.errors import StateError, UsageError
from pipelines.spec import Feature, ModelSpec
from serving.predictor import load_predictor, read_bundle_file
from training.dataset import TrainingSet
from training.export import export
from training.fit import fit

FEATURES = (Feature(name="shop", kind="categorical"), Feature(name="price", kind="numeric"))
ROW = pl.DataFrame({"shop": ["a"], "price": [1.5]})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    price = rng.normal(size=400)
    rows = pl.DataFrame({"shop": rng.choice(["a", "b"], 400), "price": price, "label": price > 0})
    training_set = TrainingSet("shops", datetime(2024, 5, 1, tzinfo=UTC), FEATURES, rows, rows, {})
    candidate = fit(training_set, ModelSpec(trees=20, leaves=4, min_rows_per_leaf=5), 7, None)
    folder = tmp_path_factory.mktemp("bundles") / "a bundle"  # a blank in the path must not matter
    return export(candidate, folder, rows, {"metrics": {"auc": 0.9}}, {"reference_profile.json": b'{"rows": 1}'})


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "a bundle"))


def test_a_bundle_answers_probabilities(bundle: Path) -> None:
    predictor = load_predictor(str(bundle))
    scores = predictor.predict(pl.DataFrame({"price": [2.0, -2.0], "shop": ["a", "b"], "more": [1, 2]}))
    assert scores.shape == (2,)
    assert scores.dtype == np.float64
    assert scores[0] > 0.7 > 0.3 > scores[1]
    assert predictor.feature_names == ("shop", "price")
    assert predictor.metadata["pipeline"] == "shops"
    assert predictor.metadata["trained_as_of"] == "2024-05-01T00:00:00+00:00"
    assert predictor.metadata["metrics"] == {"auc": 0.9}


def test_no_rows_give_no_scores(bundle: Path) -> None:
    assert load_predictor(str(bundle)).predict(ROW.clear()).shape == (0,)


def test_path_file_uri_and_object_store_are_the_same_model(bundle: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(bundle), "/models/1", recursive=True)
    uris = [str(bundle), bundle.as_uri(), "memory://models/1", "memory://models/1/"]
    assert len({load_predictor(uri).predict(ROW).item() for uri in uris}) == 1
    assert all(json.loads(read_bundle_file(uri, "reference_profile.json")) == {"rows": 1} for uri in uris)


@pytest.mark.parametrize("gone", ["bundle.json", "model.onnx"])
def test_a_half_written_bundle_is_told(bundle: Path, gone: str) -> None:
    (bundle / gone).unlink()
    for uri in (str(bundle), bundle.as_uri()):
        with pytest.raises(StateError, match=f"no {gone} in the model bundle"):
            load_predictor(uri)


def test_a_bundle_that_is_not_there_is_told(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "gone"), (tmp_path / "gone").as_uri(), "memory://gone"):
        with pytest.raises(StateError, match="gone"):
            load_predictor(uri)


def test_a_model_of_another_bundle_is_told(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1])
    with pytest.raises(StateError, match=r"is not the model bundle\.json describes"):
        load_predictor(str(bundle))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"pipeline": "shops"}'])
def test_a_description_that_cannot_be_read_is_told(bundle: Path, content: str) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(StateError, match="export the model again"):
        load_predictor(str(bundle))


def test_an_address_of_an_unknown_kind_is_told() -> None:
    with pytest.raises(UsageError, match="carrier://pigeon"):
        load_predictor("carrier://pigeon")


def test_a_frame_without_a_column_is_told_by_name(bundle: Path) -> None:
    with pytest.raises(UsageError, match="'price'"):
        load_predictor(str(bundle)).predict(ROW.drop("price"))


def test_serving_a_model_imports_nothing_that_trains_one(bundle: Path) -> None:
    program = (
        "import sys, polars as pl; from serving.predictor import load_predictor;"
        f"load_predictor({str(bundle)!r}).predict(pl.DataFrame({{'shop': ['a'], 'price': [1.5]}}));"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"training", "mlflow", "torch", "lightgbm", "prefect"} & set(run.stdout.split())
