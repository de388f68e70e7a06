"""What the job `deployments` tells a real Prefect server, and what a run on spot does when it is asked to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from emulators import PREFECT_KUBERNETES
from manifests import IMAGE, KUBERNETES, ROOT, job_variables
from postgres import postgres as postgres  # a fixture

from perennial.ports import free_ports

pytestmark = [pytest.mark.infra, pytest.mark.infra_apply]

WITHIN_S = 120
FLOW = """
import time
from flows.context import due
from prefect import flow

@flow
async def retrain():
    print(f"has begun, as of {due(None).isoformat()}.", flush=True)
    time.sleep(600)
"""


@dataclass
class Prefect:
    """A server, and the environment in which programs find it."""

    environment: dict[str, str]
    http: httpx.Client

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        return ran

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()


def until(true: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)


@contextmanager
def serving(folder: Path, **more: str) -> Iterator[Prefect]:
    """A server with a home of its own; killed at the end, as by a node that goes."""
    port = free_ports().prefect
    (folder / "spot_flow.py").write_text(FLOW)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "WORKER_IMAGE": IMAGE,
        **more,
    }
    server_log = folder / "server.log"
    with server_log.open("wb") as output:
        command = [sys.executable, "-m", "flows.prefect_server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)
    http = httpx.Client(base_url=environment["PREFECT_API_URL"], trust_env=False, timeout=30)

    def answers() -> bool:
        try:
            return http.get("/health").is_success
        except httpx.HTTPError:
            return False

    try:
        until(answers, server, server_log)
        yield Prefect(environment, http)
    finally:
        http.close()
        server.kill()
        server.wait(30)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("prefect")
    # As prefect-server.yaml has it.
    pages = {"PREFECT_UI_STATIC_DIRECTORY": str(folder / "pages"), "PREFECT_SERVER_METRICS_ENABLED": "true"}
    with serving(folder, **pages) as running:
        yield running


def test_the_work_pool_and_the_deployments_are_made_and_may_be_made_again(prefect: Prefect) -> None:
    for _ in range(2):
        prefect.run("-m", "flows.cluster_deployments", str(KUBERNETES / "base"))
    pool = prefect.ask("GET", "/work_pools/perennial")
    assert pool["type"] == "kubernetes"
    assert pool["base_job_template"]["variables"]["properties"]["image"]["default"] == IMAGE
    assert pool["base_job_template"]["job_configuration"]["job_manifest"]["spec"]["podReplacementPolicy"] == "Failed"
    made = {one["entrypoint"].rpartition(".")[2]: one for one in prefect.ask("POST", "/deployments/filter", {})}
    assert set(made) == {"ingest", "score", "monitor", "check", "retrain", "rollout"}
    assert made["retrain"]["job_variables"] == job_variables()["retrain"]
    assert made["score"]["job_variables"] == {}


def test_the_server_unpacks_its_pages_where_it_is_told_and_answers_prometheus(prefect: Prefect) -> None:
    page = prefect.http.get(f"{str(prefect.http.base_url).removesuffix('/api/')}/", follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text
    assert (Path(prefect.environment["PREFECT_UI_STATIC_DIRECTORY"]) / "v2" / "index.html").exists()
    assert "process_cpu_seconds_total" in prefect.http.get("/metrics").text


def test_a_run_that_is_asked_to_end_gives_itself_back_and_is_scheduled_again(prefect: Prefect, tmp_path: Path) -> None:
    flow = prefect.ask("POST", "/flows/", {"name": "spot"})
    deployment = {"name": "spot", "flow_id": flow["id"], "entrypoint": "spot_flow.retrain", "path": "."}
    made = prefect.ask("POST", "/deployments/", deployment)
    run = prefect.ask("POST", f"/deployments/{made['id']}/create_flow_run", {})
    # As the job's manifest has it (test_kubernetes.py).
    environment = {"PREFECT__FLOW_RUN_ID": run["id"], "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    moments = []
    for attempt in ("first", "second"):
        log = tmp_path / f"{attempt}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "flow-run", "execute"],
                env={**prefect.environment, **environment},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            until(lambda log=log: "has begun" in log.read_text(), process, log)
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_S) == 0, log.read_text()[-2000:]
            assert time.monotonic() - asked < job_variables()["retrain"]["grace_s"]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        state = prefect.ask("GET", f"/flow_runs/{run['id']}")["state"]
        assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingRetry")
        moments += re.findall(r"has begun, as of (\S+)\.\s", log.read_text())
    # Begun again, a retrain is of the same moment, and finds the checkpoint of it.
    assert len(moments) == 2
    assert moments[0] == moments[1]


@pytest.mark.usefixtures("prefect_kubernetes")
def test_the_worker_makes_kubernetes_jobs_with_its_folder_on_the_path_and_only_then() -> None:
    known = "from prefect.plugins import load_prefect_collections as load; print(sorted(load()))"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.devnull}
    for path, expected in (("", []), (str(PREFECT_KUBERNETES), ["prefect_kubernetes"])):
        ran = subprocess.run(
            [sys.executable, "-c", known],
            env={**environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        # One that is found and cannot be loaded is told, and in the list all the same.
        assert ran.stdout == f"{expected}\n", ran.stdout + ran.stderr[-2000:]


def test_a_run_keeps_its_slot_when_the_server_goes_on_elsewhere(postgres: str, tmp_path: Path) -> None:
    manifest = yaml.safe_load((KUBERNETES / "base" / "prefect-server.yaml").read_text().split("\n---\n")[0])
    told = {one["name"]: one.get("value") for one in manifest["spec"]["template"]["spec"]["containers"][0]["env"]}
    url = postgres.replace("+psycopg:", "+asyncpg:")
    same = {name: str(told[name]) for name in told if name.startswith("PREFECT_SERVER_CONCURRENCY_")}
    same |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    def become(server: Prefect, run: str, name: str) -> Any:
        body = {"state": {"type": name, "name": name.title(), "state_details": {}}}
        assert server.ask("POST", f"/flow_runs/{run}/set_state", body)["status"] == "ACCEPT"
        return server.ask("GET", f"/flow_runs/{run}")["state"]["state_details"]["deployment_concurrency_lease_id"]

    with serving(first, **same) as server:
        # Of a client that says no version, Prefect believes that it cannot renew.
        server.http.headers["User-Agent"] = f"prefect/{version('prefect')} (API 0)"
        flow = server.ask("POST", "/flows/", {"name": "spot"})
        deployment = {"name": "spot", "flow_id": flow["id"], "entrypoint": "spot_flow.retrain", "path": "."}
        made = server.ask("POST", "/deployments/", {**deployment, "concurrency_limit": 1})
        run = server.ask("POST", f"/deployments/{made['id']}/create_flow_run", {})["id"]
        become(server, run, "PENDING")
        lease = become(server, run, "RUNNING")
    # Nothing of the first's disk is there.
    with serving(second, **same) as server:
        renewed = server.http.post(f"/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": 300})
        assert renewed.status_code == 204, renewed.text
        limit = f"/v2/concurrency_limits/deployment:{made['id']}"
        assert server.ask("GET", limit)["active_slots"] == 1
        become(server, run, "COMPLETED")
        assert server.ask("GET", limit)["active_slots"] == 0
