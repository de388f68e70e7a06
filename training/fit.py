"""From a training set to a candidate, whatever the model family."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encoding import Encoder, encode, fit_encoder
from perennial.errors import StageError
from pipelines.spec import Family, ModelSpec
from training.checkpoint import Checkpoint, fingerprint
from training.dataset import TrainingSet


@dataclass(frozen=True)
class Candidate:
    """A fitted model that has not proved anything yet.

    Attributes:
        pipeline: name of the pipeline.
        family: "lightgbm" or "pytorch".
        as_of: the moment as which its training data was read (UTC).
        encoder: how rows become the model's input.
        model: a `lightgbm.Booster` or a `torch.nn.Module`.
        training_rows: how many rows it was fitted on.
        label_rate: share of them whose label is true.
        seed: of the fit.
    """

    pipeline: str
    family: Family
    as_of: datetime
    encoder: Encoder
    model: Any
    training_rows: int
    label_rate: float
    seed: int

    def predict(self, frame: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Probability of the positive class by the model's own library; n rows -> (n,) float64."""
        matrix = encode(frame, self.encoder)
        if not len(matrix):
            return np.empty(0)
        if self.family == "lightgbm":
            return np.asarray(self.model.predict(matrix, num_threads=1), dtype=np.float64)
        import torch

        with torch.inference_mode():
            return np.asarray(self.model(torch.from_numpy(matrix)).numpy(), dtype=np.float64)


def fit(training_set: TrainingSet, model_spec: ModelSpec, seed: int, checkpoint: Path | str | None) -> Candidate:
    """Fit a model on the training rows; the holdout is not looked at.

    Args:
        training_set: rows with features and labels.
        model_spec: which family, and how it is fitted.
        seed: the same data, spec and seed give a model with the same scores.
        checkpoint: folder, or s3:// address of one, in which a killed fit left its progress and this one leaves its own; None
            keeps none.

    Raises:
        StageError: there is nothing to learn from: no rows, a missing label, or labels of one kind only.
        UsageError: a feature has no column in the training rows, or one of a type it cannot be read from.
        StateError: the checkpoint cannot be written or read.
    """
    labels = _labels(training_set)
    encoder = fit_encoder(training_set.train, labels, training_set.features)
    matrix, targets = encode(training_set.train, encoder), labels.astype(np.float32)
    progress = None
    if checkpoint is not None:
        library = {"lightgbm": "lightgbm", "pytorch": "torch"}[model_spec.family]
        # A new image may come between a fit's two halves, with another learning rate or another network.
        code = Path(__file__).with_name(f"{library}_trainer.py").read_bytes()
        parts = {
            "model": model_spec.model_dump(),
            "encoder": encoder.as_dict(),
            "seed": seed,
            "library": f"{library} {version(library)}",
            "rows": len(matrix),
        }
        progress = Checkpoint(checkpoint, fingerprint(parts, code, matrix.tobytes(), targets.tobytes()))
    if model_spec.family == "lightgbm":
        from training.lightgbm_trainer import fit_trees

        model = fit_trees(matrix, targets, model_spec, seed, progress)
    else:
        from training.torch_trainer import fit_network

        counts = [len(encoder.categories.get(name, ())) for name in encoder.feature_names]
        model = fit_network(matrix, targets, counts, model_spec, seed, progress)
    return Candidate(
        pipeline=training_set.pipeline,
        family=model_spec.family,
        as_of=training_set.as_of,
        encoder=encoder,
        model=model,
        training_rows=len(matrix),
        label_rate=float(labels.mean()),
        seed=seed,
    )


def _labels(training_set: TrainingSet) -> npt.NDArray[np.bool_]:
    column = training_set.train.get_column("label")
    if column.null_count():
        raise StageError(
            f"{column.null_count()} of {len(column)} training rows of {training_set.pipeline} have no label; "
            "a row may be learned from only once its label is known"
        )
    labels = column.cast(pl.Boolean).to_numpy()
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        raise StageError(
            f"nothing to learn for {training_set.pipeline} as of {training_set.as_of:%Y-%m-%d %H:%M}: "
            f"{positive} of {len(labels)} training rows are positive; wait for labels or take a longer history"
        )
    return np.asarray(labels, dtype=np.bool_)
