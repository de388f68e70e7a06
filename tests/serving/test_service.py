"""The scoring service behind a real socket, with the real controller beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import pytest
import uvicorn

from pipelines.spec import RolloutPolicy
from rollout.controller import release, run_rollout
from rollout.ledger import Model
from serving.app import create_app
from serving.predictor import load_predictor
from serving.router import key_pct

POLICY = RolloutPolicy(steps_pct=(10.0, 50.0), min_requests=60, poll_s=0.05, max_step_s=30.0, lease_s=10.0)


def utc_now() -> datetime:
    return datetime.now(UTC)


def wait_until(true, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def running(app) -> Iterator[str]:
    """The application under uvicorn on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="httptools"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Clients:
    """Concurrent clients that ask until they are stopped, and keep every answer."""

    def __init__(self, url: str, event, clients: int = 4) -> None:
        self.answers: list[tuple[int, str, str, float]] = []  # status, key, version, score
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._running = [self._pool.submit(self._ask, url, event, i) for i in range(clients)]

    def _ask(self, url: str, event, client: int) -> None:
        with httpx.Client(base_url=url) as http:
            for i in range(100_000):
                if self._stop.is_set():
                    return
                response = http.post("/v1/toys/score", json={"events": [event(f"{client}-{i}", x=(i % 9) / 4 - 1)]})
                found = response.json()["predictions"][0] if response.status_code == 200 else {}
                key, version, score = found.get("key", ""), found.get("version", ""), found.get("score", -1.0)
                self.answers.append((response.status_code, key, version, score))

    def stop(self) -> list[tuple[int, str, str, float]]:
        self._stop.set()
        for one in self._running:
            one.result(20)
        self._pool.shutdown()
        return self.answers


@pytest.fixture
def service(settings, toy_spec, shelf, request_features):
    """A running service; models come from the shelf, or from bundles on disk."""

    def load(uri: str):
        return shelf.load(uri) if uri.startswith("shelf://") else load_predictor(uri)

    app = create_app(
        settings,
        specs={"toys": toy_spec},
        load=load,
        open_features=lambda spec, settings: request_features,
        poll_s=0.05,
    )
    with running(app) as url:
        yield url


def roll_out(ledger, challenger: Model):
    release(ledger, "toys", challenger, POLICY, "drift", None, utc_now())
    return run_rollout(ledger, "toys", POLICY, utc_now, time.sleep, lambda _: None)


def test_a_good_model_is_promoted_under_traffic_and_a_bad_one_taken_back(service, ledger, write_bundle, toy_event):
    release(ledger, "toys", write_bundle("1", 0.0), POLICY, "first", None, utc_now())
    wait_until(lambda: httpx.get(f"{service}/ready").status_code == 200)
    clients = Clients(service, toy_event)
    try:
        good = roll_out(ledger, write_bundle("2", 0.1))
        wait_until(lambda: httpx.get(f"{service}/v1/toys/serving").json()["champion"]["version"] == "2")
        bad = roll_out(ledger, write_bundle("3", 8.0))
        wait_until(lambda: httpx.get(f"{service}/v1/toys/serving").json()["challenger"] is None)
    finally:
        answers = clients.stop()
    assert (good.action, bad.action) == ("promote", "rollback")
    assert "scores differ by" in bad.reason
    assert {status for status, *_ in answers} == {200}
    assert [e.action for e in ledger.history("toys")] == [
        "promote", "start", "advance", "promote", "start", "rollback"
    ]  # fmt: skip
    versions = Counter(version for _, _, version, _ in answers)
    assert set(versions) == {"1", "2", "3"}
    # The bad one never got past its first share, so it answered those keys and no others.
    assert all(key_pct("3", key) < 10 for _, key, version, _ in answers if version == "3")
    # The service tells the ledger once a second.
    wait_until(lambda: ledger.observations("toys", "3", bad.sequence - 1).requests >= versions["3"])
    assert ledger.observations("toys", "3", bad.sequence - 1).requests == versions["3"]
    with httpx.Client(base_url=service) as http:
        after = [http.post("/v1/toys/score", json={"events": [toy_event(f"k{i}")]}).json() for i in range(30)]
    assert {one["predictions"][0]["version"] for one in after} == {"2"}


@pytest.mark.parametrize("bad", ["raises", "nan", "absent", "slow"])
def test_no_client_ever_sees_what_is_wrong_with_a_canary(service, ledger, toy_event, bad):
    release(ledger, "toys", Model("1", "shelf://1"), POLICY, "first", None, utc_now())
    wait_until(lambda: httpx.get(f"{service}/ready").status_code == 200)
    clients = Clients(service, toy_event)
    try:
        ended = roll_out(ledger, Model(bad, f"shelf://{bad}"))
    finally:
        answers = clients.stop()
    assert ended.action == "rollback", ended.reason
    assert {status for status, *_ in answers} == {200}
    assert all(0 <= score <= 1 for *_, score in answers)
    if bad != "slow":
        assert {version for _, _, version, _ in answers} == {"1"}


def test_a_controller_that_dies_leaves_the_champion_alone_when_its_lease_is_over(service, ledger, toy_event):
    policy = POLICY.model_copy(update={"lease_s": 1.0, "steps_pct": (50.0,)})
    release(ledger, "toys", Model("1", "shelf://1"), policy, "first", None, utc_now())
    wait_until(lambda: httpx.get(f"{service}/ready").status_code == 200)
    release(ledger, "toys", Model("2", "shelf://2"), policy, "drift", None, utc_now())  # and nobody runs it

    def versions() -> set[str]:
        response = httpx.post(f"{service}/v1/toys/score", json={"events": [toy_event(f"{i}") for i in range(50)]})
        return {one["version"] for one in response.json()["predictions"]}

    wait_until(lambda: versions() == {"1", "2"}, 1.0)
    wait_until(lambda: versions() == {"1"}, 3.0)


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_the_module_serves_and_ends_on_sigterm(tmp_path, free_port):
    environment = os.environ | {"PERENNIAL_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "serving", "--port", str(free_port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{free_port}"

        def up() -> bool:
            try:
                return httpx.get(f"{url}/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(up)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.post(f"{url}/v1/nothing/score", json={"events": []}).status_code == 404
        assert "perennial_ledger_failures_total 0.0" in httpx.get(f"{url}/metrics").text
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert process.stderr.read() == ""
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{free_port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_serving_imports_neither_training_nor_flows_nor_a_model_registry():
    code = "import sys, serving.__main__; print([m for m in ('training', 'prefect', 'mlflow', 'feast') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
