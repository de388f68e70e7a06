"""`perennial cost` on what Terraform really plans; of AWS, moto answers what a plan asks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from terraform import Terraform

pytestmark = pytest.mark.infra

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def planning(initialized: Terraform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    made = Terraform(tmp_path_factory.mktemp("planning"), {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    assert made.init().status == 0
    yield made
    server.stop()


def cost_of(planning: Terraform, home: Path, *arguments: str) -> dict[str, Any]:
    planning.must("plan", "-out=plan", *arguments)
    (home / "plan.json").write_text(planning.must("show", "-json", "plan"))
    command = [sys.executable, "-m", "perennial.cli", "cost", "flights", "--hours", "0.5", "--json"]
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    keep = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**keep, **nowhere, "PYTHONPATH": str(ROOT), "PERENNIAL_HOME": str(home)}
    ended = subprocess.run(
        [*command, "--plan", str(home / "plan.json")], capture_output=True, text=True, env=environment, timeout=90
    )
    assert ended.stdout, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


@pytest.mark.parametrize("size", ["small", pytest.param("production", marks=pytest.mark.infra_apply)])
def test_everything_that_is_planned_has_its_price(planning: Terraform, tmp_path: Path, size: str) -> None:
    told = cost_of(planning, tmp_path, f"-var-file=examples/{size}.tfvars", "-var=region=us-east-1")
    assert told["missing"] == []
    lines = {line["part"]: line["expected_usd"] for line in told["bill"]["lines"]}
    hours = 730
    # By hand, from sizes.tf and the price lists: brokers with their disks, database with its standby, Redis, NAT with address.
    by_hand = {
        "small": {
            "control plane": 0.10 * hours,
            "nodes system": 2 * (0.1664 * hours + 50 * 0.08),
            "event stream": 3 * (0.204 * hours + 50 * 0.10),
            "database": 0.065 * hours + 20 * 0.115,
            "online features": 0.032 * hours,
            "NAT gateways": 0.05 * hours,
        },
        "production": {
            "control plane": 0.10 * hours,
            "nodes system": 3 * (0.384 * hours + 50 * 0.08),
            "event stream": 3 * (0.204 * hours + 500 * 0.10),
            "database": 2 * (0.159 * hours + 100 * 0.115),
            "online features": 3 * 0.219 * hours,
            "NAT gateways": 3 * 0.05 * hours,
        },
    }[size]
    assert {part: lines[part] for part in by_hand} == {part: pytest.approx(usd) for part, usd in by_hand.items()}
    assert (lines["nodes gpu-spot"], lines["nodes gpu-on-demand"]) == (0.0, 0.0)
    retrained_on = [one["instance_type"] for one in told["retrain"]["types"]]
    ending = {"small": ".xlarge", "production": ".2xlarge"}[size]
    assert retrained_on == [f"{family}{ending}" for family in ("g4dn", "g5", "g6", "g6e")]


@pytest.mark.infra_apply
def test_prices_that_the_region_of_production_lacks_are_told_and_never_free(
    planning: Terraform, tmp_path: Path
) -> None:
    told = cost_of(planning, tmp_path, "-var-file=examples/production.tfvars")
    assert (told["region"], told["status"]) == ("eu-central-1", "INCONCLUSIVE")
    lines = {line["part"]: line["expected_usd"] for line in told["bill"]["lines"]}
    unknown = {part for part, usd in lines.items() if usd is None}
    assert unknown == {"event stream", "database", "online features", "alarms, node metrics"}
    assert all(any(item in sentence for sentence in told["missing"]) for item in ("msk/", "rds/", "elasticache/"))
    assert lines["nodes system"] == pytest.approx(3 * (0.46 * 730 + 50 * 0.0952))
    assert lines["NAT gateways"] == pytest.approx(3 * (0.052 + 0.005) * 730)
    assert [one["saving"] is not None for one in told["retrain"]["types"]] == [True] * 4
