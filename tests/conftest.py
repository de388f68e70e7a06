from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import hypothesis
import noida_db
import pytest
from two_weeks import two_weeks as two_weeks  # a fixture

STARTS_WITHIN_S = 20

# A busy machine is no defect.
hypothesis.settings.register_profile("perennial", deadline=None)
hypothesis.settings.load_profile("perennial")


@pytest.fixture(scope="session", autouse=True)
def _no_foreign_addresses() -> Iterator[None]:
    """Whatever the caller's environment points at, tests must not write there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PERENNIAL_") or n == "MLFLOW_TRACKING_URI"]:
            patch.delenv(name)
        yield


@dataclass
class Broker:
    """A real embedded broker of one's own."""

    port: int
    process: subprocess.Popen[bytes]
    data: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def start_again(self) -> None:
        """As it was when it was stopped: on its port, with its data."""
        self.process = start_broker(self.data, self.port).process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(data: Path, port: int | None = None) -> Broker:
    """Start the broker's own binary: the script that pip installs would leave it behind when ended."""
    port = port or _free_port()
    binary = Path(noida_db.__file__).parent / "noida-db"
    where = ["--data-dir", str(data), "--host", "127.0.0.1", "--kafka-port", str(port)]
    with (data.parent / f"{data.name}.log").open("wb") as log:
        process = subprocess.Popen([binary, "start", "--only", "kafka", *where], stdout=log, stderr=log)
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return Broker(port, process, data)
        except OSError:
            time.sleep(0.02)
    process.kill()
    pytest.fail(f"the broker did not start: {(data.parent / f'{data.name}.log').read_text()[-1000:]}")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the session: tests keep apart by the names of their topics."""
    running = start_broker(tmp_path_factory.mktemp("kafka") / "data")
    yield running
    running.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that the test may stop."""
    running = start_broker(tmp_path / "broker")
    yield running
    running.stop()


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    return _free_port()


@pytest.fixture
def pushgateway(free_port: int, tmp_path: Path) -> Iterator[str]:
    binary = shutil.which("prometheus-pushgateway") or shutil.which("pushgateway")
    if binary is None:
        pytest.skip("no Pushgateway is installed")
    address = f"http://127.0.0.1:{free_port}"
    with (tmp_path / "pushgateway.log").open("wb") as log:
        # Debian's keeps what was pushed in a file of the machine, for the next one to find.
        own = [f"--web.listen-address=127.0.0.1:{free_port}", "--persistence.file="]
        process = subprocess.Popen([binary, *own], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{address}/-/ready", timeout=1).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.02)
        else:
            pytest.fail((tmp_path / "pushgateway.log").read_text()[-1_000:])
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server that does not proxy artifacts, ended with everything it started."""
    home = tmp_path_factory.mktemp("ml flow")  # a blank in the path must not matter
    port = _free_port()
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
