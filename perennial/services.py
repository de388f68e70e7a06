"""The services of the local stack: what each is for, and the command that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perennial.deploy import WORK_POOL
from perennial.errors import StateError
from perennial.ports import HOST, StackPorts

WHAT: Mapping[str, str] = {
    "kafka": "event broker",
    "prefect": "flows, schedules, automations",
    "worker": f"runs flows of the work pool {WORK_POOL}",
    "mlflow": "runs, models, aliases",
    "scoring": "answers predictions",
}


@dataclass(frozen=True)
class Service:
    """One line of the table of what runs where; without pid and log where the address was given by a setting."""

    name: str
    what: str
    address: str
    pid: int | None = None
    log: Path | None = None


def command(name: str, root: Path, ports: StackPorts) -> list[str]:
    """The program and arguments of a service that keeps its state below `root`."""
    port = ["--host", HOST, "--port", str(getattr(ports, name))]
    if name == "kafka":
        data = str(root / "kafka")
        start = [_noida_binary(), "start", "--only", "kafka"]
        return [*start, "--data-dir", data, "--host", HOST, "--kafka-port", str(ports.kafka)]
    if name == "prefect":
        return [sys.executable, "-m", "flows.prefect_server", *port]
    if name == "mlflow":
        folder = root / "mlflow"
        folder.mkdir(exist_ok=True)
        stores = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        stores += ["--default-artifact-root", (folder / "artifacts").as_uri()]
        return [sys.executable, "-m", "perennial.mlflow_server", *stores, *port]
    return [sys.executable, "-m", "serving", *port]


def _noida_binary() -> str:
    """The broker's executable inside its package: its Python command would not pass signals on."""
    import noida_db

    binary = Path(noida_db.__file__).parent / "noida-db"
    if not binary.is_file():
        raise StateError(f"the package noida-db has no broker at {binary}; install it again for this platform")
    if not os.access(binary, os.X_OK):
        with suppress(OSError):
            binary.chmod(0o755)
    return str(binary)
