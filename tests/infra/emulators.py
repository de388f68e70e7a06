"""Two emulators of AWS on free ports of this computer: moto, and MiniStack for what moto cannot do well enough."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCOUNT = "123456789012"
REGION = "us-east-1"
OF_MINISTACK = ("EKS", "KAFKA", "BUDGETS", "ELASTICACHE", "AUTO_SCALING")
PATCHES = Path(__file__).with_name("emulator_patches.py")
STARTS_WITHIN_S = 60
# Read before the fixture that takes PERENNIAL_* out of the environment of tests.
TOOLS = Path(os.environ.get("PERENNIAL_INFRA_TOOLS") or Path(sys.prefix) / "tools")
PREFECT_KUBERNETES = TOOLS / "kubernetes"


@dataclass(frozen=True)
class Emulators:
    """Where they answer, as environment variables of the AWS clients."""

    endpoints: Mapping[str, str]

    def client(self, service: str, region: str = REGION) -> Any:
        """A boto3 client of the emulator that plays this service."""
        import boto3

        # The variables are named by the service's id, such as AUTO_SCALING, which is not always boto3's name of it.
        service_id = boto3.session.Session().client(service, region_name=region).meta.service_model.service_id
        variable = f"AWS_ENDPOINT_URL_{service_id.upper().replace(' ', '_').replace('-', '_')}"
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.endpoints.get(variable, self.endpoints["AWS_ENDPOINT_URL"]),
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


def ministack_python() -> Path:
    """The interpreter of the environment that has MiniStack; it wants another botocore than perennial does."""
    return TOOLS / "ministack" / "bin" / "python"


@contextmanager
def running(folder: Path) -> Iterator[Emulators]:
    """Start both, and stop them.

    Args:
        folder: for their logs and home.
    """
    moto, ministack = _free_port(), _free_port()
    plain = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder)}
    processes = [
        _start(
            [sys.executable, str(PATCHES), "moto", "-H", "127.0.0.1", "-p", str(moto)],
            {**plain, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "MOTO_ACCOUNT_ID": ACCOUNT},
            folder / "moto.log",
        ),
        _start(
            [str(ministack_python()), str(PATCHES), "ministack"],
            {
                **plain,
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(ministack),
                "MINISTACK_ACCOUNT_ID": ACCOUNT,
                "DOCKER_HOST": "unix:///nonexistent",  # a real Docker would get containers of EKS and Redis
            },
            folder / "ministack.log",
        ),
    ]
    try:
        for process, port, name in zip(processes, (moto, ministack), ("moto", "ministack"), strict=True):
            _wait_for(process, port, folder / f"{name}.log")
        yield Emulators(
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{moto}",
                **{f"AWS_ENDPOINT_URL_{service}": f"http://127.0.0.1:{ministack}" for service in OF_MINISTACK},
            }
        )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as told:
        return subprocess.Popen(command, env=environment, stdout=told, stderr=told, cwd=log.parent)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"an emulator did not start: {log.read_text()[-2000:]}")
