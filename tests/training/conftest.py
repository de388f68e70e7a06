from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from pipelines.spec import Feature
from training.dataset import TrainingSet

FEATURES = (
    Feature(name="shop", kind="categorical"),
    Feature(name="colour", kind="categorical"),
    Feature(name="price", kind="numeric"),
    Feature(name="visits", kind="numeric"),
    Feature(name="returning", kind="numeric"),
)
AS_OF = datetime(2024, 5, 1, tzinfo=UTC)


def shop_rows(rows: int, seed: int) -> pl.DataFrame:
    """Rows whose label depends on the shop, and on the price only where there are visits."""
    rng = np.random.default_rng(seed)
    shop, price, visits = rng.integers(0, 6, rows), rng.normal(size=rows), rng.integers(0, 4, rows)
    odds = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])[shop] + price * (visits > 1)
    return pl.DataFrame(
        {
            "entity_key": [f"o{i}" for i in range(rows)],
            "event_timestamp": [AS_OF - timedelta(minutes=i) for i in range(rows)],
            "shop": [f"shop-{s}" for s in shop],
            "colour": [None if c == 0 else f"c{c}" for c in rng.integers(0, 3, rows)],
            "price": np.where(rng.random(rows) < 0.1, np.nan, price),
            "visits": visits,
            "returning": rng.random(rows) < 0.3,
            "label": rng.random(rows) < 1 / (1 + np.exp(-odds)),
        }
    ).with_columns(pl.col("price").fill_nan(None))


@pytest.fixture(scope="session")
def make_training_set() -> Callable[..., TrainingSet]:
    def make(rows: int = 3_000, seed: int = 1) -> TrainingSet:
        return TrainingSet("shops", AS_OF, FEATURES, shop_rows(rows, seed), shop_rows(1_000, seed + 1), {"orders": 12})

    return make


@pytest.fixture(scope="session")
def training_set(make_training_set: Callable[..., TrainingSet]) -> TrainingSet:
    return make_training_set()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server that does not proxy artifacts, ended with everything it started."""
    home = tmp_path_factory.mktemp("ml flow")  # a blank in the path must not matter
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--no-serve-artifacts"]
    command += ["--default-artifact-root", (home / "artifacts").as_uri()]
    log = (home / "server.log").open("wb")
    environment = {**os.environ, "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(address, server, home / "server.log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def _wait_until_healthy(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=1).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"MLflow did not start: {log.read_text()[-2000:]}")
