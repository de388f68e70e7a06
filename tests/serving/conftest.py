from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from perennial.settings import Settings
from pipelines.spec import EventField, EventSpec, Feature, LabelSpec, PipelineSpec, ScoredSpec
from rollout.ledger import Entry, Ledger, Model

START = datetime(2026, 1, 1, tzinfo=UTC)

ASKED = EventSpec(
    topic="toys.asked.v1",
    fields=(
        EventField(name="toy_id", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="x", type="float"),
        EventField(name="count", type="int"),
        EventField(name="sold", type="bool"),
        EventField(name="note", type="string", nullable=True),
    ),
    event_timestamp="event_timestamp",
    event_id=("toy_id",),
    partition_key="toy_id",
)

TOYS = PipelineSpec(
    name="toys",
    description="A pipeline with one feature, which the event itself tells.",
    events=(ASKED,),
    scored=ScoredSpec(topic="toys.asked.v1", key="toy_id"),
    label=LabelSpec(topic="toys.asked.v1", key="toy_id", value=lambda f: f["sold"], horizon_s=60),
    views=(),
    request_features=lambda f: f.select("x"),
    features=(Feature(name="x", kind="numeric"),),
    contract=(),
    replay=lambda start, end: {},
)


class RequestFeatures:
    """Features of a pipeline without streamed ones."""

    def frame(self, scored: pl.DataFrame) -> pl.DataFrame:
        return TOYS.request_features(scored)


class Sigmoid:
    """1 / (1 + exp(-(x + bias)))."""

    def __init__(self, bias: float) -> None:
        self.bias = bias

    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        return 1 / (1 + np.exp(-(frame["x"].to_numpy() + self.bias)))


class Raises:
    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        raise RuntimeError("no such column")


class Answers:
    """The same score for every row, or one score too few."""

    def __init__(self, score: float, missing: int = 0) -> None:
        self.score, self.missing = score, missing

    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        return np.full(frame.height - self.missing, self.score)


class Slow(Sigmoid):
    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        time.sleep(0.03)
        return super().predict(frame)


class Shelf:
    """Models by uri."""

    def __init__(self) -> None:
        self.models: dict[str, object] = {}
        self.loads: list[str] = []

    def put(self, version: str, model: object) -> Model:
        self.models[f"shelf://{version}"] = model
        return Model(version, f"shelf://{version}")

    def load(self, uri: str):
        self.loads.append(uri)
        return self.models[uri]


@dataclass
class Clock:
    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf() -> Shelf:
    """Versions: 1 and 2 are good, the others each bad in their own way; 'absent' cannot be loaded."""
    made = Shelf()
    for version, model in {
        "1": Sigmoid(0.0),
        "2": Sigmoid(0.1),
        "raises": Raises(),
        "nan": Answers(float("nan")),
        "above": Answers(1.5),
        "short": Answers(0.5, missing=1),
        "wrong": Answers(0.99),
        "slow": Slow(0.1),
    }.items():
        made.put(version, model)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def ledger(settings: Settings):
    opened = Ledger(settings.ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def serve(ledger: Ledger, clock: Clock) -> Callable[..., Entry]:
    """Writes the next entry: a champion, and a challenger with a share and a lease of 20 s."""

    def write(champion: str, challenger: str | None = None, share_pct: float = 0.0) -> Entry:
        state = ledger.state("toys")
        ledger.renew_lease("toys", clock() + timedelta(seconds=20))
        models = [Model(v, f"shelf://{v}") if v else None for v in (champion, challenger)]
        action = "start" if challenger else "promote"
        sequence = state.sequence + 1 if state else 1
        return ledger.append(Entry("toys", sequence, clock(), action, *models, share_pct, "because", None))

    return write


@pytest.fixture
def toy_spec() -> PipelineSpec:
    return TOYS


@pytest.fixture
def asked() -> EventSpec:
    return ASKED


@pytest.fixture
def request_features() -> RequestFeatures:
    return RequestFeatures()


@pytest.fixture
def toy_event() -> Callable[..., dict[str, object]]:
    def event(toy_id: str = "a", x: float = 0.0, **changes: object) -> dict[str, object]:
        plain = {"toy_id": toy_id, "event_timestamp": "2026-01-01T00:00:00Z", "x": x, "count": 1, "sold": True}
        return plain | {"note": None} | changes

    return event


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[[str, float], Model]:
    """Exports sigmoid(x + bias) as a model bundle."""

    def write(version: str, bias: float) -> Model:
        from onnx import TensorProto, helper

        from features.encoding import Encoder

        column = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 1])
        out = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])
        nodes = [
            helper.make_node("Add", ["features", "bias"], ["moved"]),
            helper.make_node("Sigmoid", ["moved"], ["probability"]),
            helper.make_node("Squeeze", ["probability", "axis"], ["score"]),
        ]
        constants = [
            helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ]
        graph = helper.make_graph(nodes, "sigmoid", [column], [out], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        content = model.SerializeToString()
        folder = tmp_path / "models" / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(content)
        encoder = Encoder(TOYS.features, {}).as_dict()
        metadata = {"version": 1, "model_sha256": sha256(content).hexdigest(), "encoder": encoder}
        (folder / "bundle.json").write_text(json.dumps(metadata))
        return Model(version, folder.as_uri())

    return write
