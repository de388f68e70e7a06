"""Gradient-boosted trees that can be killed at any tree and still end as the same model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.spec import ModelSpec
from training.checkpoint import Checkpoint, Progress

TREES_PER_CHUNK = 50
NAN_MISSING, DEFAULT_LEFT, MISSING_TYPE_BITS = 8, 2, 12


def fit_trees(
    matrix: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    spec: ModelSpec,
    seed: int,
    checkpoint: Checkpoint | None,
) -> Any:
    """Fit a LightGBM binary classifier.

    Training goes in chunks of TREES_PER_CHUNK trees, and every chunk starts from the model text of the one before,
    whether the fit was interrupted there or not: so both end in the same trees. Nothing is drawn at random from chunk
    to chunk.

    Args:
        matrix: (n, k) float32, NaN where missing.
        labels: (n,) zeros and ones.
        spec: trees, leaves, learning_rate, min_rows_per_leaf.
        seed: of the rows LightGBM looks at to choose bins (all of them up to 200,000 rows).
        checkpoint: where to keep progress; None keeps none.

    Returns:
        A `lightgbm.Booster` whose thresholds are float32 values, see `round_thresholds`.
    """
    import lightgbm

    params = {
        "objective": "binary",
        "num_leaves": spec.leaves,
        "learning_rate": spec.learning_rate,
        "min_data_in_leaf": spec.min_rows_per_leaf,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        # The trees do not depend on it. With a thread a core they wait for each other wherever anything else runs:
        # five times slower on two busy cores.
        "num_threads": max(1, (os.cpu_count() or 2) // 2),
        "verbosity": -1,
    }
    done = checkpoint.load() if checkpoint else None
    trees, text = (done.step, done.state.decode()) if done else (0, "")
    while trees < spec.trees:
        more = min(TREES_PER_CHUNK, spec.trees - trees)
        previous = lightgbm.Booster(model_str=text) if text else None
        booster = lightgbm.train(params, lightgbm.Dataset(matrix, labels), num_boost_round=more, init_model=previous)
        trees, text = trees + more, booster.model_to_string(num_iteration=-1)
        if checkpoint:
            checkpoint.save(Progress(trees, text.encode()))
    return lightgbm.Booster(model_str=round_thresholds(text))


def round_thresholds(text: str) -> str:
    """Make a LightGBM model say the same in float32 as in float64.

    LightGBM compares in float64 and ONNX in float32. Of a float32 x, `x <= t` holds exactly when x is at most the
    largest float32 not above t, so thresholds are rounded down: no prediction on a float32 matrix changes, and ONNX
    then agrees in every split. A split that saw no missing value in training reads NaN as 0; it is rewritten to send
    NaN where 0 goes.

    Args:
        text: from `Booster.model_to_string`, numeric splits only.

    Returns:
        The model text with `threshold` and `decision_type` rewritten.
    """
    lines: list[str] = []
    thresholds: list[float] = []
    for line in text.splitlines():
        name, _, values = line.partition("=")
        if name == "threshold":
            thresholds = [_round_down(float(value)) for value in values.split()]
            lines.append(f"threshold={' '.join(map(repr, thresholds))}")
        elif name == "decision_type":
            kinds = [_explicit_missing(int(kind), t) for kind, t in zip(values.split(), thresholds, strict=True)]
            lines.append(f"decision_type={' '.join(map(str, kinds))}")
        elif name != "tree_sizes":  # byte offsets that no longer hold; without them the text is parsed tree by tree
            lines.append(line)
    return "\n".join(lines) + "\n"


def _round_down(threshold: float) -> float:
    largest = np.finfo(np.float32).max
    rounded = np.float32(np.clip(threshold, -largest, largest))
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)


def _explicit_missing(kind: int, threshold: float) -> int:
    if kind & MISSING_TYPE_BITS:
        return kind
    return NAN_MISSING | (DEFAULT_LEFT if threshold >= 0.0 else 0)
