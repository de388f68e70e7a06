"""A model bundle, loaded to answer requests.

A bundle is a folder: `model.onnx` (float32 matrix -> probability of the positive class), `bundle.json` (encoder,
lineage, metrics; written last, so that a folder without it is half-written), and files that other stages read, such as
`reference_profile.json`. LightGBM and PyTorch models look alike from here on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encoding import Encoder, encode
from perennial.errors import StateError, UnreachableError, UsageError

BUNDLE_VERSION = 1
BUNDLE_FILE = "bundle.json"
MODEL_FILE = "model.onnx"
INPUT_NAME = "features"


@dataclass(frozen=True)
class Predictor:
    """A loaded model; safe to call from many threads.

    Attributes:
        uri: where the bundle was read from.
        encoder: how rows become the model's input.
        metadata: what bundle.json says (pipeline, family, trained_as_of, metrics, label_rate, created, ...).
    """

    uri: str
    encoder: Encoder
    metadata: Mapping[str, Any]
    session: Any

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns a frame must have, in the model's order."""
        return self.encoder.feature_names

    def predict(self, frame: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Probability of the positive class.

        Args:
            frame: n rows with every feature column; other columns are ignored.

        Returns:
            (n,) float64 in [0, 1].

        Raises:
            UsageError: a feature has no column in the frame, or one of a type it cannot be read from.
        """
        matrix = encode(frame, self.encoder)
        if not len(matrix):
            return np.empty(0)
        scores: npt.NDArray[np.float64] = self.session.run(None, {INPUT_NAME: matrix})[0].astype(np.float64)
        return scores


def load_predictor(uri: str) -> Predictor:
    """Load a bundle.

    Args:
        uri: the bundle's folder as a path, a file:// or s3:// URI, or any address fsspec can read.

    Raises:
        StateError: there is no bundle, or a half-written, damaged or newer one.
        UsageError: the address is of a kind that cannot be read.
        UnreachableError: the store did not answer.
    """
    import onnxruntime

    metadata = _read_metadata(uri)
    model = read_bundle_file(uri, MODEL_FILE)
    if hashlib.sha256(model).hexdigest() != metadata.get("model_sha256"):
        raise StateError(f"{MODEL_FILE} in {uri} is not the model {BUNDLE_FILE} describes; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a request has one row: more threads only take turns
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Predictor(str(uri), Encoder.from_dict(metadata.get("encoder", {})), MappingProxyType(metadata), session)


def read_bundle_file(uri: str, name: str) -> bytes:
    """The bytes of one file of a bundle, such as `reference_profile.json`.

    Raises:
        StateError: the bundle has no such file.
        UsageError: the address is of a kind that cannot be read.
        UnreachableError: the store did not answer.
    """
    parts = urlsplit(str(uri))
    missing = StateError(f"no {name} in the model bundle {uri}; export or register the model again")
    if parts.scheme == "file" or "://" not in str(uri):
        folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
        try:
            return (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        except OSError as error:
            raise StateError(f"{name} in the model bundle {uri} cannot be read: {error.strerror}") from error
    address = f"{str(uri).rstrip('/')}/{name}"
    if parts.scheme == "s3":
        from perennial.s3 import read_object

        try:
            return read_object(address)
        except FileNotFoundError:
            raise missing from None
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise missing from None
    except (ImportError, ValueError) as error:
        raise UsageError(f"model bundle {uri} cannot be read: {error}; give a path, file:// or s3://") from error
    except OSError as error:
        raise UnreachableError(f"the store of model bundle {uri} did not answer: {error}") from error


def _read_metadata(uri: str) -> dict[str, Any]:
    try:
        metadata = json.loads(read_bundle_file(uri, BUNDLE_FILE))
    except ValueError as error:
        raise StateError(f"{BUNDLE_FILE} in {uri} is not JSON ({error}); export the model again") from error
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if version != BUNDLE_VERSION:
        raise StateError(
            f"the model bundle {uri} is of version {version!r} and this program reads version {BUNDLE_VERSION}; "
            "export the model again, or upgrade"
        )
    return dict(metadata)
