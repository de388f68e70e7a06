"""The whole local stack, for real: two starts on one home, the first one's owner killed, the second one's asked to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from perennial.ports import StackPorts, free_ports
from perennial.stack import PROJECT

pytestmark = pytest.mark.stack

OWNER = """
import sys
from pathlib import Path
from perennial.ports import StackPorts
from perennial.settings import Settings
from perennial.stack import start_stack
ports = StackPorts(*map(int, sys.argv[2:]))
with start_stack(Settings(), ports, schedules=False, project=Path(sys.argv[1]), on_ready=print) as stack:
    stack.wait()
"""

# Stands in for the real flow so that the test sees what an automation hands over, without fitting a model.
RETRAIN = """
from __future__ import annotations
import json, os
from datetime import datetime
from pathlib import Path
from typing import Literal
from prefect import flow
from perennial.settings import Settings

@flow
async def retrain(
    pipeline: str = "none",
    as_of: datetime | None = None,
    family: Literal["lightgbm", "pytorch"] | None = None,
    reason: str = "by hand",
    force: bool = True,
) -> None:
    seen = [pipeline, type(as_of).__name__, as_of.isoformat(), family, reason, force, Settings().kafka_bootstrap_servers]
    (Path(os.environ["PERENNIAL_HOME"]) / "seen.new").write_text(json.dumps([*seen, str(Path.cwd())]))
    (Path(os.environ["PERENNIAL_HOME"]) / "seen.new").rename(Path(os.environ["PERENNIAL_HOME"]) / "seen.json")
"""

OTHER = """
from __future__ import annotations
from datetime import datetime
from prefect import flow

@flow
async def {name}(pipeline: str = "none", as_of: datetime | None = None) -> None:
    return None
"""


def eventually(look: Callable[[], Any], limit_s: float, what: str) -> Any:
    """The first true answer of `look`; a failed test when there is none in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    pytest.fail(f"{what} did not happen within {limit_s} s")


def processes_of(home: Path) -> list[str]:
    """Every process that was told this home, whoever started it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PERENNIAL_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


@contextmanager
def owner(command: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns a stack and ignores SIGINT, as with `&` in a script; killed at the end if it is still there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
    with (home.parent / f"{uuid.uuid4()}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**kept, "PERENNIAL_HOME": str(home)},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home.parent,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def addresses_of(home: Path, process: subprocess.Popen[bytes], *, ready: bool = True) -> dict[str, str]:
    def look() -> dict[str, str] | None:
        logs = "\n".join(log.read_text() for log in home.parent.glob("*.log"))
        assert process.poll() is None, f"the owner ended by itself:\n{logs}"
        with suppress(OSError):
            stack = json.loads((home / "stack.json").read_text())
            # The file of an owner that was killed is still there until the next one has begun.
            names = {child["name"] for child in stack["children"] if child["ready"]}
            if stack["pid"] == process.pid and ready == (names == {"kafka", "prefect", "worker", "mlflow", "scoring"}):
                return stack["addresses"]
        return None

    return eventually(look, 240, "the stack's start")


def check_every_address_answers(addresses: dict[str, str]) -> None:
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=addresses["kafka_bootstrap_servers"])
    assert isinstance(admin.list_topics(), list)
    admin.close()
    assert httpx.get(f"{addresses['prefect_api_url']}/health").json() is True
    assert httpx.get(f"{addresses['mlflow_tracking_uri']}/health").text == "OK"
    search = httpx.post(
        f"{addresses['mlflow_tracking_uri']}/api/2.0/mlflow/experiments/search", json={"max_results": 5}
    )
    assert [e["name"] for e in search.json()["experiments"]] == ["Default"]
    assert httpx.get(f"{addresses['scoring_url']}/health").is_success


def deployments_of(addresses: dict[str, str]) -> dict[str, Any]:
    listed = httpx.post(f"{addresses['prefect_api_url']}/deployments/filter", json={}).json()
    return {deployment["entrypoint"]: deployment for deployment in listed}


def emit(addresses: dict[str, str], event: str, payload: dict[str, Any]) -> None:
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": "perennial.pipeline.flights"},
        "payload": payload,
    }
    httpx.post(f"{addresses['prefect_api_url']}/events", json=[body]).raise_for_status()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("stack") / "home"
    yield home
    for line in processes_of(home):
        psutil.Process(int(line.split()[0])).kill()


def test_an_event_starts_a_retrain_and_a_killed_owner_leaves_nothing(home: Path) -> None:
    project = home.parent / "project"
    (project / "stand_ins").mkdir(parents=True)
    # The real deployments, schedules and automations; only what they run is a stand-in.
    deployments_file = (PROJECT / "prefect.yaml").read_text()
    (project / "prefect.yaml").write_text(deployments_file.replace("entrypoint: flows.", "entrypoint: stand_ins."))
    (project / "stand_ins" / "retrain.py").write_text(RETRAIN)
    for name in ("ingest", "score", "monitor", "check", "rollout"):
        (project / "stand_ins" / f"{name}.py").write_text(OTHER.format(name=name))
    ports = free_ports()
    command = [sys.executable, "-c", OWNER, str(project), *(str(port) for port in asdict(ports).values())]
    with owner(command, home) as process:
        addresses = addresses_of(home, process)
        assert addresses == {
            "kafka_bootstrap_servers": f"127.0.0.1:{ports.kafka}",
            "prefect_api_url": f"http://127.0.0.1:{ports.prefect}/api",
            "mlflow_tracking_uri": f"http://127.0.0.1:{ports.mlflow}",
            "scoring_url": f"http://127.0.0.1:{ports.scoring}",
        }
        check_every_address_answers(addresses)

        deployments = deployments_of(addresses)
        assert sorted(deployments) == [
            f"stand_ins.{n}.{n}" for n in ("check", "ingest", "monitor", "retrain", "rollout", "score")
        ]
        assert not any(s["active"] for d in deployments.values() for s in d["schedules"])

        as_of = "2013-03-09T06:00:00+00:00"
        why = "PSI 0.31 of dep_delay"
        emit(addresses, "perennial.retrain.needed", {"pipeline": "flights", "as_of": as_of, "reason": why})
        emit(addresses, "perennial.candidate.accepted", {"pipeline": "flights", "as_of": as_of, "version": "7"})
        eventually((home / "seen.json").exists, 90, "the retrain that the event asks for")
        assert json.loads((home / "seen.json").read_text()) == [
            "flights",
            "datetime",
            as_of,
            None,
            why,
            False,
            addresses["kafka_bootstrap_servers"],
            str(project),
        ]
        runs = httpx.post(f"{addresses['prefect_api_url']}/flow_runs/filter", json={}).json()
        parameters = {run["deployment_id"]: run["parameters"] for run in runs}
        rolled = parameters[deployments["stand_ins.rollout.rollout"]["id"]]
        assert (rolled["pipeline"], rolled["as_of"]) == ("flights", as_of)

        second = subprocess.run(
            command, env={**os.environ, "PERENNIAL_HOME": str(home)}, capture_output=True, timeout=60
        )
        assert f"already runs on {home}, owned by process {process.pid}" in second.stderr.decode()

        process.send_signal(signal.SIGKILL)
        process.wait()
    if sys.platform.startswith("linux"):
        end = time.monotonic() + 30
        while (left := processes_of(home)) and time.monotonic() < end:
            time.sleep(0.2)
        assert left == []


def test_perennial_up_starts_after_a_killed_owner_and_sigterm_ends_every_process(home: Path) -> None:
    assert (home / "stack.json").exists(), "the killed owner's file is what this start has to cope with"
    ports = free_ports()
    options = [text for name, port in asdict(ports).items() for text in (f"--{name}-port", str(port))]
    with owner([sys.executable, "-m", "perennial.cli", "up", *options], home) as process:
        known = addresses_of(home, process, ready=False)
        assert known["scoring_url"] == f"http://127.0.0.1:{ports.scoring}"
        addresses = addresses_of(home, process)
        assert addresses == known
        check_every_address_answers(addresses)
        deployments = deployments_of(addresses)
        assert all(s["active"] for d in deployments.values() for s in d["schedules"])
        assert deployments["flows.retrain.retrain"]["global_concurrency_limit"]["limit"] == 1
        assert str(PROJECT) in json.dumps(deployments["flows.ingest.ingest"]["pull_steps"])
        assert len(processes_of(home)) >= 6  # the owner, four servers and the worker

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert processes_of(home) == []
    assert not (home / "stack.json").exists()
    assert all(can_listen(port) for port in asdict(ports).values())


def can_listen(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return server.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    free = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = asdict(StackPorts(free.kafka, free.prefect, taken.getsockname()[1], free.scoring))
        options = [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
        up = subprocess.run(
            [sys.executable, "-m", "perennial.cli", "up", *options],
            env={**os.environ, "PERENNIAL_HOME": str(tmp_path / "home")},
            capture_output=True,
            timeout=60,
        )
    said = " ".join((up.stdout + up.stderr).decode().split())
    assert up.returncode == 2
    assert f"port {ports['mlflow']} for mlflow is in use by" in said
    assert f"(pid {os.getpid()}); stop it or pass --mlflow-port N" in said
    assert not (tmp_path / "home" / "logs").exists()
