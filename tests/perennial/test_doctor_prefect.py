"""What `perennial doctor` says of a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.addresses import QUIET
from perennial.deploy import WORK_POOL
from perennial.doctor import servers
from perennial.doctor.findings import Finding
from perennial.ports import free_ports
from perennial.settings import Settings
from validation.verdict import Status

ROOT = Path(__file__).parents[2]
STARTS_WITHIN_S = 120
FLOWS = ("ingest", "score", "monitor", "check", "retrain", "rollout")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of Prefect of its own, that nobody has put anything into."""
    with serving(tmp_path_factory.mktemp("prefect")) as address:
        yield address


@contextmanager
def serving(home: Path, **more: str) -> Iterator[str]:
    port = str(free_ports().prefect)
    environment = {**os.environ, **QUIET, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), **more}
    environment.pop("PREFECT_API_URL", None)
    with (home / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "flows.prefect_server", "--host", "127.0.0.1", "--port", port]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home)
    address = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if httpx.get(f"{address}/health", timeout=1).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            pytest.fail((home / "server.log").read_text()[-2_000:])
        yield address
    finally:
        server.terminate()
        server.wait(30)


def post(api: str, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{api}{path}", json=body, timeout=30).raise_for_status()
    return answer.json() if answer.content else None


def test_a_server_of_our_version_passes_and_of_another_fails(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=api)
    finding = servers.prefect(settings)
    assert finding.verdict.status is Status.PASS, finding
    monkeypatch.setattr(servers.metadata, "version", lambda _: "3.0.1")
    finding = servers.prefect(settings)
    assert finding.verdict.status is Status.FAIL
    assert "and 3.0.1 here" in finding.verdict.reason


def test_its_pages_in_place_of_its_api_are_told(api: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=api.removesuffix("/api"))
    for finding in (servers.prefect(settings), servers.work_pool(settings), servers.deployments(settings, "flights")):
        assert finding.verdict.status is Status.FAIL
        assert "PREFECT_API_URL" in finding.mend
        assert "no work pool" not in finding.verdict.reason


def test_the_work_pool_and_its_worker(api: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=api)

    def found() -> Finding:
        return servers.work_pool(settings)

    assert (found().verdict.status, "there is no work pool" in found().verdict.reason) == (Status.FAIL, True)
    post(api, "/work_pools/", {"name": WORK_POOL, "type": "process"})
    assert (found().verdict.status, "has no worker" in found().verdict.reason) == (Status.FAIL, True)
    post(api, f"/work_pools/{WORK_POOL}/workers/heartbeat", {"name": "w", "heartbeat_interval_seconds": 30})
    assert found().verdict.status is Status.PASS, found()
    assert "of type process, 1 worker online" in found().verdict.reason
    pause = {"is_paused": True}
    httpx.patch(f"{api}/work_pools/{WORK_POOL}", json=pause, timeout=30).raise_for_status()
    assert (found().verdict.status, "is paused" in found().verdict.reason) == (Status.FAIL, True)


def test_deployments_and_their_schedules(api: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=api)

    def found() -> Finding:
        return servers.deployments(settings, "flights")

    assert found().verdict.status is Status.FAIL
    assert "not deployed: check, ingest, monitor, retrain, rollout, score" in found().verdict.reason
    made = {}
    for name in FLOWS:
        flow = post(api, "/flows/", {"name": name})["id"]
        schedules = [{"active": True, "schedule": {"interval": 3_600}}] if name != "retrain" else []
        body = {"name": "flights", "flow_id": flow, "entrypoint": f"flows.{name}.{name}", "schedules": schedules}
        made[name] = post(api, "/deployments/", {**body, "tags": ["perennial", "flights"]})["id"]
        if name == "score":
            assert "not deployed: check, monitor, retrain, rollout" in found().verdict.reason
    assert found().verdict.status is Status.PASS, found()
    post(api, f"/deployments/{made['monitor']}/pause_deployment", {})
    assert (found().verdict.status, found().verdict.reason) == (Status.INCONCLUSIVE, "off: monitor")
    assert servers.deployments(settings, "shop").verdict.status is Status.FAIL


def test_a_server_that_wants_a_password_does_not_make_deployments_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with serving(tmp_path, PREFECT_SERVER_API_AUTH_STRING="me:hunter2") as guarded:
        finding = servers.deployments(Settings(home=tmp_path, prefect_api_url=guarded), "flights")
        assert (finding.verdict.status, "refuses this user (401)" in finding.verdict.reason) == (Status.FAIL, True)
        known = Settings(home=tmp_path, prefect_api_url=guarded.replace("//", "//me:hunter2@"))
        assert "not deployed" in servers.deployments(known, "flights").verdict.reason


def test_a_server_that_is_not_there_fails_each_check(tmp_path: Path, free_port: int) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=f"http://me:hunter2@127.0.0.1:{free_port}/api")
    for finding in (servers.prefect(settings), servers.work_pool(settings), servers.deployments(settings, "flights")):
        assert finding.verdict.status is Status.FAIL
        assert "PREFECT_API_URL" in finding.mend
        assert "hunter2" not in f"{finding}"
