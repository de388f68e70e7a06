"""MLflow's server as infra/kubernetes starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psycopg
import pytest
import sqlalchemy as sa
import yaml
from manifests import KUBERNETES, ROOT
from postgres import postgres as postgres  # a fixture

from perennial.ports import free_ports

pytestmark = [pytest.mark.infra, pytest.mark.infra_apply]

WITHIN_S = 60
# The tables that MLflow 2.0 had, of 2022.
OLDER = "cc1f77228345"


@pytest.fixture
def older(postgres: str) -> str:
    """A database with the tables of an MLflow of years ago."""
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE mlflow")
    url = postgres.replace("/postgres?", "/mlflow?")
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    config = _get_alembic_config(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLDER)
    engine.dispose()
    return url


def test_a_newer_mlflow_starts_on_the_tables_of_an_older_one(older: str, tmp_path: Path) -> None:
    pod = yaml.safe_load((KUBERNETES / "base" / "mlflow.yaml").read_text().split("\n---\n")[0])["spec"]["template"][
        "spec"
    ]
    values = {"DATABASE_URL": older, "MLFLOW_ARTIFACT_ROOT": str(tmp_path / "artifacts")}
    port = free_ports().mlflow
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    programs = {"python": [sys.executable], "mlflow": [sys.executable, "-m", "mlflow"]}

    def command(container: dict[str, list[str]]) -> list[str]:
        said = container["args"]
        for name, value in values.items():
            said = [argument.replace(f"$({name})", value) for argument in said]
        return [*programs[said[0]], *said[1:]]

    log = tmp_path / "log"
    with log.open("wb") as output:
        for first in pod.get("initContainers", []):
            ran = subprocess.run(command(first), env=environment, cwd=tmp_path, stdout=output, stderr=output)
            assert ran.returncode == 0, log.read_text()[-2000:]
        serve = [*command(pod["containers"][0]), "--host=127.0.0.1", f"--port={port}"]
        server = subprocess.Popen(serve, env=environment, cwd=tmp_path, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + WITHIN_S
        while True:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                told = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            assert told.text == "OK"
            break
        found = httpx.post(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, trust_env=False
        )
        assert [one["name"] for one in found.json()["experiments"]] == ["Default"]
    finally:
        server.kill()
        server.wait(30)
