"""`perennial cost`, as a person at a terminal uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aws_account import account as account
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account

from features.lake import Lake
from perennial.settings import Settings
from training.history import Retrain, record_begin, record_retrain

ROOT = Path(__file__).parents[2]
AS_OF = datetime(2026, 1, 1, tzinfo=UTC)


def plan(region: str = "us-east-1", *more: dict[str, Any]) -> dict[str, Any]:
    """A cluster with one node on demand, and spot nodes of two types from zero."""

    def group(index: str, types: list[str], capacity: str, begins: int, most: int) -> dict[str, Any]:
        scaling = [{"desired_size": begins, "min_size": begins, "max_size": most}]
        values = {"instance_types": types, "capacity_type": capacity, "scaling_config": scaling, "disk_size": 20}
        return {"address": f"aws_eks_node_group.{index}", "type": "aws_eks_node_group", "name": index, "values": values}

    cluster = {"address": "aws_eks_cluster.this", "type": "aws_eks_cluster", "name": "this", "values": {}}
    groups = [
        group("system", ["t3.xlarge"], "ON_DEMAND", 1, 2),
        group("gpu-spot", ["g5.xlarge", "g6.xlarge"], "SPOT", 0, 1),
    ]
    return {
        "format_version": "1.2",
        "variables": {"region": {"value": region}},
        "planned_values": {"root_module": {"resources": [cluster, *groups, *more]}},
    }


def cost(home: Path, *arguments: str, told: Any = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PERENNIAL_HOME": str(home), "COLUMNS": "80"}
    command = [sys.executable, "-m", "perennial.cli", "cost", *arguments]
    text = told if isinstance(told, str) else json.dumps(told)
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=90)


@pytest.fixture(autouse=True)
def _nobody_is_asked(no_account: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's AWS."""


def test_a_plan_and_the_hours_of_a_retrain_give_the_whole_bill(tmp_path: Path) -> None:
    ended = cost(tmp_path, "flights", "--plan", "-", "--hours", "2", "--json", told=plan())
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["status"], told["missing"]) == (0, "PASS", [])
    assert {line["part"]: round(line["expected_usd"], 2) for line in told["bill"]["lines"]} == {
        "nodes system": round(0.1664 * 730 + 20 * 0.08, 2),
        "control plane": 73.0,
        "nodes gpu-spot": 0.0,
    }
    g5, g6 = told["retrain"]["types"]
    assert (g5["instance_type"], g6["instance_type"]) == ("g5.xlarge", "g6.xlarge")
    assert g5["on_demand_usd"] == pytest.approx(1.006 * 2.1)  # two hours and six minutes of start
    # An hour on spot was 0.5089 of 1.006 in August 2026; interruptions take one or two percent of the time.
    assert 1 - 1.03 * 0.5089 / 1.006 < g5["saving"] < 1 - 0.5089 / 1.006
    assert told["retrain"]["saves_at_best"] == pytest.approx(g5["saving"])
    assert told["retrain"]["saves_at_worst"] == pytest.approx(1 - g6["spot_usd"] / g5["on_demand_usd"])
    assert told["retrain"]["spot_is_measured"] is False


def test_people_read_it_at_80_columns(tmp_path: Path) -> None:
    ended = cost(tmp_path, "flights", "--plan", "-", "--hours", "2", told=plan())
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        "control plane",
        "nodes gpu-spot",
        "together",
        "g6.xlarge",
        "one day of 2026-08",
        "buys g5.xlarge, its first",
        "Goal: save 60 %",
        "on top",
    ):
        assert words.lower() in ended.stdout.lower(), words
    assert "…" not in ended.stdout


def test_prices_say_of_when_they_are(tmp_path: Path) -> None:
    said = re.search(
        r"List prices of us-east-1 of (\d{4})-(\d\d)\s+to\s+2026-\d\d,\s+the\s+oldest\s+(\d+)\s+months\s+old",
        cost(tmp_path, "flights").stdout,
    )
    assert said
    now = datetime.now(UTC)
    assert int(said[3]) == (now.year - int(said[1])) * 12 + now.month - int(said[2])


def test_a_region_without_prices_is_inconclusive_and_never_free(tmp_path: Path) -> None:
    ended = cost(tmp_path, "flights", "--plan", "-", "--hours", "2", told=plan("eu-north-1"))
    assert ended.returncode == 1
    assert "The table of prices has none of eu-north-1" in ended.stdout
    assert "INCONCLUSIVE" in ended.stdout
    assert "eu-north-1,eks/cluster,USD,hour,YYYY-MM,URL" in ended.stdout.replace("\n", "")
    assert "0.00" not in ended.stdout.split("together")[0].split("all but")[0]


def test_a_price_by_use_that_is_missing_is_inconclusive_too(tmp_path: Path) -> None:
    bucket = {"address": "aws_s3_bucket.this", "type": "aws_s3_bucket", "name": "this", "values": {}}
    told = cost(tmp_path, "flights", "--plan", "-", "--hours", "2", "--json", told=plan("eu-central-1", bucket)).stdout
    assert any("eu-central-1,s3/standard,USD,GB-month" in sentence for sentence in json.loads(told)["missing"])


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_without_a_plan_the_region_is_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv(name, "eu-central-1")
    assert json.loads(cost(tmp_path, "flights", "--hours", "1", "--json").stdout)["region"] == "eu-central-1"


def test_the_hours_come_from_the_record_of_retrains(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "flights")
    for day, minutes in enumerate((30, 90, 36)):
        as_of = AS_OF + timedelta(days=day)
        record_begin(lake, as_of, "by hand", "lightgbm", as_of)
        ended = Retrain(as_of, "by hand", "lightgbm", "accepted", "better", 0.7, 0.71, "1")
        record_retrain(lake, ended, as_of + timedelta(minutes=minutes))
    told = json.loads(cost(tmp_path, "flights", "--json").stdout)
    assert told["retrain"]["work_h"] == pytest.approx(0.6)  # the middle one
    assert "median of 3 retrains on record" in told["retrain"]["work_h_from"]
    assert told["bill"] is None


def test_without_a_record_the_hours_are_asked_for(tmp_path: Path) -> None:
    ended = cost(tmp_path, "flights")
    assert ended.returncode == 1
    assert "say how long a retrain takes: --hours 0.5" in ended.stdout


def test_with_an_account_spot_prices_are_ec2s(tmp_path: Path, account: str) -> None:
    told = json.loads(cost(tmp_path, "flights", "--plan", "-", "--hours", "2", "--json", told=plan()).stdout)
    assert told["retrain"]["spot_is_measured"] is True


@pytest.mark.parametrize(
    ("arguments", "told", "sentence"),
    [
        (("nobody", "--hours", "1"), "", "perennial: .*'nobody'"),
        (("flights", "--plan", "-", "--hours", "1"), "{}", "- is no plan; write it with `terraform plan"),
        (("flights", "--plan", "-", "--hours", "1"), "PK", "- is not JSON; write it with `terraform show -json PLAN`"),
        (("flights", "--plan", "/no/plan", "--hours", "1"), "", "/no/plan cannot be read"),
        (("flights", "--hours", "0"), "", "--hours.*greater than or equal to 0.001"),
        (("flights", "--hours", "nan"), "", "--hours.*Input should be"),
        (("flights", "--hours", "inf"), "", "--hours.*less than or equal to 8760"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], told: str, sentence: str
) -> None:
    ended = cost(tmp_path, *arguments, told=told)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.search(sentence, ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_plan_without_spot_nodes_says_that_retrains_have_no_place(tmp_path: Path) -> None:
    told = plan()
    told["planned_values"]["root_module"]["resources"].pop()
    ended = cost(tmp_path, "flights", "--plan", "-", "--hours", "1", told=told)
    assert ended.returncode == 1
    assert "no spot nodes" in ended.stdout
