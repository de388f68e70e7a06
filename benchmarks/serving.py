"""The scoring service with features in Redis: start-up, requests per second and how long they take, of `flights`.

    python -m benchmarks.serving [--json] [--seconds 10]

The service is a process of its own and so is the client: 8 connections, each with one request of one event under way. The
model is a sum, which costs next to nothing, so that what is measured is the way to it. The peer is the same service with
Feast reading the same rows of Redis. redis-server must be installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil

from benchmarks.running import STARTS_WITHIN_S, alone, quiet, scratch, tell
from perennial.ports import HOST, free_ports
from perennial.settings import Settings

CONNECTIONS = 8
WARM_S = 2.0
PIPELINE = "flights"
READERS = {
    "reader": "",
    "feast": "import features.feast_lake, features.store as store; store.online_rows = store.FeastRows; ",
}
SERVE = "{}import sys; from serving.__main__ import main; sys.exit(main())"


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of its own; its address."""
    import redis

    port = free_ports().scoring
    where = ("--port", str(port), "--bind", HOST, "--dir", str(folder), "--save", "")
    process = subprocess.Popen(["redis-server", *where], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                redis.Redis(port=port).ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield f"redis://{HOST}:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def prepare(settings: Settings, folder: Path) -> None:
    """A released model, and a row online for each key that is asked for."""
    import polars as pl
    from onnx import TensorProto, helper

    from features.encoding import Encoder
    from features.store import OnlineWriter
    from pipelines.spec import load_pipeline
    from rollout.controller import release
    from rollout.ledger import Ledger, Model

    spec, now = load_pipeline(PIPELINE), datetime.now(UTC)
    writer = OnlineWriter(spec, settings)
    for view in spec.views:
        key = asked(now)[view.entity]
        values = {a.name: [1.0] for a in view.aggregates}
        writer.write(
            view, pl.DataFrame({view.entity: [key], "event_timestamp": [now], "created_timestamp": [now], **values})
        )
    n = len(spec.features)
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["probability"]),
        helper.make_node("Squeeze", ["probability", "axis"], ["score"]),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("weights", TensorProto.FLOAT, [n, 1], [0.001] * n),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    taken = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, n])
    given = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])
    graph = helper.make_graph(nodes, "sum", [taken], [given], constants)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    encoder = Encoder(spec.features, {f.name: () for f in spec.features if f.kind == "categorical"}).as_dict()
    (folder / "model.onnx").write_bytes(model)
    described = {"version": 1, "model_sha256": sha256(model).hexdigest(), "encoder": encoder}
    (folder / "bundle.json").write_text(json.dumps(described))
    ledger = Ledger(settings.ledger_url)
    release(ledger, PIPELINE, Model("1", str(folder)), spec.rollout, "first", None, now)
    ledger.close()


def asked(now: datetime) -> dict[str, str | float]:
    """A flight to be scored."""
    return {
        "flight_id": "f1",
        "event_timestamp": now.isoformat(),
        "scheduled_departure": (now + timedelta(hours=1)).isoformat(),
        "carrier": "UA",
        "flight_number": 1,
        "tail_number": "N1",
        "origin": "EWR",
        "destination": "ATL",
        "distance_mi": 700.0,
    }


def load(port: int, seconds: float) -> list[float]:
    """Ask for some seconds; how long each request took, in seconds."""
    body = json.dumps({"events": [asked(datetime.now(UTC))]}).encode()
    head = ("Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}", "", "")
    request = "\r\n".join((f"POST /v1/{PIPELINE}/score HTTP/1.1", *head)).encode() + body
    took = []

    async def ask(until: float) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        while (began := time.perf_counter()) < until:
            writer.write(request)
            told = await reader.readuntil(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 200"), told
            length = next(int(line[15:]) for line in told.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()

    async def all_of_them() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(ask(until) for _ in range(CONNECTIONS)))

    asyncio.run(all_of_them())
    return took


def measure(name: str, settings: Settings, seconds: float) -> dict[str, float]:
    """Figures of the service with one way to read."""
    port = free_ports().scoring
    environment = {
        **os.environ,
        "PERENNIAL_HOME": str(settings.home),
        "PERENNIAL_ONLINE_STORE_URL": settings.online_store_url,
    }
    began = time.perf_counter()
    command = [sys.executable, "-c", SERVE.format(READERS[name]), "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        while not is_ready(port):
            if process.poll() is not None or time.perf_counter() - began > 3 * STARTS_WITHIN_S:
                raise SystemExit(f"the service with {name} did not start")
            time.sleep(0.01)
        ready_s = time.perf_counter() - began
        alone(load, port, WARM_S)
        took = np.array(alone(load, port, seconds).result)
        memory = psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        process.wait(30)
    return {
        f"{name}_ready_s": ready_s,
        f"{name}_requests_per_s": len(took) / seconds,
        f"{name}_p50_ms": float(np.quantile(took, 0.5)) * 1e3,
        f"{name}_p99_ms": float(np.quantile(took, 0.99)) * 1e3,
        f"{name}_rss_mb": memory / 1e6,
    }


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    """Measure and print."""
    quiet()
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is not installed; install it to measure the service")
    arguments = sys.argv[1:]
    seconds = float(arguments[arguments.index("--seconds") + 1]) if "--seconds" in arguments else 10.0
    figures: dict[str, float] = {}
    with scratch() as root, redis_server(root) as url:
        settings = Settings(home=root / "home", online_store_url=url)
        bundle = root / "bundle"
        bundle.mkdir()
        prepare(settings, bundle)
        for name in READERS:
            figures |= measure(name, settings, seconds)
    tell(figures)


if __name__ == "__main__":
    main()
