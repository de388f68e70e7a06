"""`perennial rollback` and `perennial traffic`, as a person at a terminal uses them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from features.encoding import Encoder
from perennial.scaffold import init_pipeline
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import RolloutPolicy
from rollout.controller import release
from rollout.ledger import Entry, Ledger, Model
from training import registry

AT_ONCE = RolloutPolicy(steps_pct=())
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Shop:
    """A new pipeline in a folder of its own, and the commands as they act on it."""

    def __init__(self, folder: Path, mlflow: str) -> None:
        self.name = f"shop_{uuid.uuid4().hex[:8]}"
        self.folder, self.mlflow = folder, mlflow
        init_pipeline(self.name, folder / "pipelines")
        self.ledger = Ledger(Settings(home=folder / "home").ledger_url)

    def environment(self, **more: str) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
        where = {"PERENNIAL_HOME": str(self.folder / "home"), "PERENNIAL_PIPELINES_DIR": str(self.folder / "pipelines")}
        return {**own, **where, "MLFLOW_TRACKING_URI": self.mlflow, "PYTHONUNBUFFERED": "1", **more}

    def call(self, command: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perennial.cli", command, self.name, *options],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def register(self) -> Model:
        """One more version in MLflow; the registry looks at a bundle's files and never inside the model."""
        bundle = self.folder / "bundles" / uuid.uuid4().hex
        bundle.mkdir(parents=True)
        (bundle / "model.onnx").write_text(bundle.name)
        (bundle / "bundle.json").write_text("{}")
        made = registry.register(self.mlflow, self.name, bundle, {}, {}, {}, {})
        return Model(made.version, made.uri)

    def release(self, model: Model, policy: RolloutPolicy = AT_ONCE, hour: int = 0) -> Entry:
        return release(self.ledger, self.name, model, policy, "a test's", None, NOW + timedelta(hours=hour))

    def alias(self, name: str) -> str | None:
        found = registry.get(self.mlflow, self.name, name)
        return found.version if found else None


@pytest.fixture
def offline_shop(tmp_path: Path, free_port: int) -> Iterator[Shop]:
    """A pipeline whose MLflow does not answer."""
    made = Shop(tmp_path, f"http://127.0.0.1:{free_port}")
    yield made
    made.ledger.close()


@pytest.fixture
def shop(tmp_path: Path, mlflow_server: str) -> Iterator[Shop]:
    made = Shop(tmp_path, mlflow_server)
    yield made
    made.ledger.close()


def sentence(answer: subprocess.CompletedProcess[str]) -> str:
    """What the command said on stderr, which is one sentence."""
    assert "Traceback" not in answer.stderr + answer.stdout
    (said,) = answer.stderr.strip().splitlines()
    assert said.startswith("perennial: ")
    return said


def test_a_rollback_takes_the_canary_out_and_both_aliases_follow(shop: Shop) -> None:
    first, second = shop.register(), shop.register()
    shop.release(first)
    shop.release(second, RolloutPolicy(), hour=1)
    registry.set_alias(shop.mlflow, shop.name, registry.CHALLENGER, second.version)
    answer = shop.call("rollback", "--reason", "it looks odd")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"version 1 serves {shop.name}" in answer.stdout
    latest = shop.ledger.state(shop.name)
    assert latest is not None
    assert (latest.action, latest.champion, latest.challenger) == ("rollback", first, None)
    assert latest.reason == "it looks odd"
    assert (shop.alias("champion"), shop.alias("challenger")) == ("1", None)


def test_a_rollback_withdraws_a_challenger_that_waits_even_where_no_champion_can_go_back(shop: Shop) -> None:
    entry = shop.release(shop.register())
    waiting = shop.register()
    registry.set_alias(shop.mlflow, shop.name, registry.CHALLENGER, waiting.version)
    answer = shop.call("rollback", "--reason", "it looks odd")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "version 2, the challenger, is withdrawn" in answer.stdout
    assert shop.alias("challenger") is None
    assert shop.ledger.history(shop.name) == [entry]


def test_a_rollback_with_nothing_to_roll_back_is_refused_in_a_sentence(shop: Shop) -> None:
    entry = shop.release(shop.register())
    answer = shop.call("rollback", "--reason", "it looks odd")
    assert answer.returncode == 2
    assert re.search(rf"'1' is the first champion of pipeline '{shop.name}'.*release another", sentence(answer))
    assert shop.ledger.history(shop.name) == [entry]


def test_a_rollback_does_not_need_mlflow_and_says_what_it_left(offline_shop: Shop) -> None:
    first, second = Model("1", "file:///1"), Model("2", "file:///2")
    offline_shop.release(first)
    offline_shop.release(second, hour=1)
    answer = offline_shop.call("rollback", "--reason", "it looks odd")
    assert answer.returncode == 0
    assert f"version 1 serves {offline_shop.name}" in answer.stdout
    said = sentence(answer)
    assert f"MLflow does not answer at {offline_shop.mlflow}" in said
    assert "aliases follow with the next rollout" in said
    latest = offline_shop.ledger.state(offline_shop.name)
    assert latest is not None
    assert (latest.action, latest.champion) == ("rollback", first)


def test_nothing_to_roll_back_is_told_even_where_mlflow_does_not_answer(offline_shop: Shop) -> None:
    answer = offline_shop.call("rollback", "--reason", "it looks odd")
    assert answer.returncode == 2
    assert "has no champion, so there is nothing to roll back" in sentence(answer)


def test_a_day_without_events_to_score_is_told(offline_shop: Shop) -> None:
    answer = offline_shop.call("traffic", "--day", "2031-07-01")
    assert answer.returncode == 2
    assert re.search(rf"--day 2031-07-01: the history of {offline_shop.name} has no event", sentence(answer))


def hour_of_the_day(folder: Path) -> Model:
    """A bundle for the new pipeline's features whose score is the hour of the order, over 24."""
    from onnx import TensorProto, helper

    names = [feature.name for feature in PIPELINE.features]
    column = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(names)])
    out = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])
    nodes = [
        helper.make_node("Gather", ["features", "hour"], ["hours"], axis=1),
        helper.make_node("Div", ["hours", "day"], ["score"]),
    ]
    constants = [
        helper.make_tensor("hour", TensorProto.INT64, [], [names.index("placed_hour")]),
        helper.make_tensor("day", TensorProto.FLOAT, [], [24.0]),
    ]
    graph = helper.make_graph(nodes, "hour_of_the_day", [column], [out], constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    encoder = Encoder(PIPELINE.features, {"product": ("hat", "coat")}).as_dict()
    described = {"version": 1, "model_sha256": hashlib.sha256(content).hexdigest(), "encoder": encoder}
    (folder / "bundle.json").write_text(json.dumps(described))
    return Model("1", folder.as_uri())


@contextmanager
def scoring(shop: Shop) -> Iterator[str]:
    """The real scoring service with a champion, ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shop.release(hour_of_the_day(shop.folder / "model"))
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", "serving", "--port", str(port)]
    with subprocess.Popen(command, env=shop.environment()) as service:
        try:
            until = time.monotonic() + 60
            while not is_ready(url):
                assert service.poll() is None
                assert time.monotonic() < until, "the service is not ready in time"
                time.sleep(0.05)
            yield url
        finally:
            service.terminate()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").is_success
    except httpx.TransportError:
        return False


def answered(url: str) -> int:
    """Requests that the service itself counted."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("perennial_requests_total{"))


def test_requests_of_a_day_are_sent_until_a_signal_and_then_told(offline_shop: Shop) -> None:
    counted = 0
    with scoring(offline_shop) as url:
        for number in (signal.SIGINT, signal.SIGTERM):
            command = [sys.executable, "-m", "perennial.cli", "traffic", offline_shop.name]
            with subprocess.Popen(
                [*command, "--day", "2024-01-09", "--per-second", "200"],
                env=offline_shop.environment(PERENNIAL_SCORING_URL=url),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as client:
                until = time.monotonic() + 60
                while answered(url) < counted + 30:
                    assert client.poll() is None
                    assert time.monotonic() < until, "no requests came in time"
                    time.sleep(0.05)
                client.send_signal(number)
                out, err = client.communicate(timeout=20)
            assert (client.returncode, err) == (0, "")
            first, last = out.strip().splitlines()
            assert first == f"200 requests a second to {url}. Ctrl-C stops them."
            came = answered(url) - counted
            counted += came
            assert came >= 30
            told, ended = last.split("; P50 ")
            assert told == f"{came:,} requests: {came:,} answered 200; {came:,} predictions by version 1"
            p50, p99 = ended.split(" ms, P99 ")
            assert 0 < float(p50) <= float(p99.removesuffix(" ms"))
