"""From a candidate to a bundle that the scoring service loads: ONNX, checked against the model it came from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from perennial.errors import StageError, UsageError
from serving.predictor import BUNDLE_FILE, BUNDLE_VERSION, INPUT_NAME, MODEL_FILE, load_predictor
from training.checkpoint import write_atomically
from training.fit import Candidate

PARITY_LIMIT = 1e-5
OPSET = 15  # the newest that the tree converter knows


def export(
    candidate: Candidate,
    directory: Path,
    sample: pl.DataFrame,
    metadata: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a candidate as a bundle.

    Args:
        candidate: the fitted model.
        directory: the bundle's folder; made when needed, what it held of an older bundle is replaced.
        sample: rows with every feature, on which the exported model must agree with the fitted one.
        metadata: more fields for bundle.json, such as metrics; JSON-ready. `created` may be given for a replay.
        extra_files: more files of the bundle by name, such as `reference_profile.json`.

    Returns:
        The folder. `bundle.json` is written last: without it the folder is half-written.

    Raises:
        StageError: the exported model differs from the fitted one by more than PARITY_LIMIT on some sample row.
        UsageError: the sample is empty or lacks a feature, or an extra file has the name of one of the bundle's own.
        StateError: the folder cannot be written.
    """
    if not sample.height:
        raise UsageError("export needs at least one sample row to compare the exported model on; the sample is empty")
    for name in extra_files or {}:
        if name in (BUNDLE_FILE, MODEL_FILE) or Path(name).name != name:
            raise UsageError(f"{name!r} cannot be an extra file of a bundle; give it a plain name of its own")
    model = _trees_to_onnx(candidate) if candidate.family == "lightgbm" else _network_to_onnx(candidate)
    described = {
        "version": BUNDLE_VERSION,
        "pipeline": candidate.pipeline,
        "family": candidate.family,
        "trained_as_of": candidate.as_of.isoformat(),
        "training_rows": candidate.training_rows,
        "label_rate": candidate.label_rate,
        "seed": candidate.seed,
        "created": datetime.now(UTC).isoformat(),
        **metadata,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "encoder": candidate.encoder.as_dict(),
    }
    content = json.dumps(described, indent=1, default=_json_ready).encode()
    marker = directory / BUNDLE_FILE
    marker.unlink(missing_ok=True)
    write_atomically(directory / MODEL_FILE, model)
    for name, data in (extra_files or {}).items():
        write_atomically(directory / name, data)
    write_atomically(marker, content)
    difference = parity(candidate, directory, sample)
    if not difference <= PARITY_LIMIT:
        marker.unlink()
        raise StageError(
            f"the exported {candidate.family} model of {candidate.pipeline} differs from the fitted one by "
            f"{difference:.3g} on {sample.height} rows, more than {PARITY_LIMIT:g}; it was not released"
        )
    return directory


def parity(candidate: Candidate, directory: Path, sample: pl.DataFrame) -> float:
    """How far the bundle's scores are from the fitted model's.

    Compared on the sample, and on the sample with one feature taken from each row, because a request may lack what
    training never lacked.

    Returns:
        The largest absolute difference in probability; NaN if either model answers NaN.
    """
    names = candidate.encoder.feature_names
    row = pl.int_range(pl.len()) % len(names)
    blanked = sample.with_columns(
        pl.when(row == j).then(None).otherwise(pl.col(name)).alias(name) for j, name in enumerate(names)
    )
    rows = pl.concat([sample, blanked])
    return float(np.abs(load_predictor(str(directory)).predict(rows) - candidate.predict(rows)).max())


def _trees_to_onnx(candidate: Candidate) -> bytes:
    import onnx
    from onnx import TensorProto, helper
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    width = len(candidate.encoder.features)
    with _quiet():
        model = convert_lightgbm(
            candidate.model,
            initial_types=[(INPUT_NAME, FloatTensorType([None, width]))],
            zipmap=False,
            target_opset=OPSET,
        )
    # The converter answers a label and (n, 2) probabilities; the service wants the second column.
    graph = model.graph
    probabilities = graph.output[1].name
    graph.initializer.append(helper.make_tensor("positive", TensorProto.INT64, [], [1]))
    graph.node.append(helper.make_node("Gather", [probabilities, "positive"], ["score"], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [None]))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _network_to_onnx(candidate: Candidate) -> bytes:
    import torch

    buffer = io.BytesIO()
    example = torch.zeros(2, len(candidate.encoder.features))
    with _quiet():
        torch.onnx.export(
            candidate.model,
            (example,),
            buffer,  # type: ignore[arg-type]  # only the newer exporter needs a path
            input_names=[INPUT_NAME],
            output_names=["score"],
            dynamic_axes={INPUT_NAME: {0: "rows"}, "score": {0: "rows"}},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter needs onnxscript
        )
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print, warn and log about their own insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _json_ready(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.generic):
        return value.item()
    raise UsageError(f"metadata value {value!r} of type {type(value).__name__} cannot be written as JSON")
