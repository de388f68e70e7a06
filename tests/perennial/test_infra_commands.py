"""From Terraform's outputs to settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.errors import PerennialError
from perennial.infra_outputs import NEEDED, cluster_addresses, read_outputs, settings_of
from perennial.settings import Settings

ROOT = Path(__file__).parents[2]
VALUES = {
    "region": "eu-central-1",
    "cluster_name": "perennial",
    "image_repositories": {"worker": "1.dkr.ecr.example/worker", "service": "1.dkr.ecr.example/service"},
    "kafka_bootstrap_servers": "b-1.example:9098,b-2.example:9098",
    "kafka_options": {"security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM"},
    "lake_warehouse": "s3://a-lake/lake",
    "lake_catalog_uri": "glue://eu-central-1",
    "checkpoints": "s3://artifacts/checkpoints",
    "mlflow_artifact_root": "s3://artifacts/mlflow",
    "database_host": "db.example",
    "database_port": 5432,
    "database_name": "perennial",
    "database_secret_arn": "arn:aws:secretsmanager:eu-central-1:1:secret:rds!db-1a2b-c3",
    "online_store_host": "redis.example",
    "online_store_port": 6379,
    "online_store_secret_arn": "arn:aws:secretsmanager:eu-central-1:1:secret:perennial/online-store-a",
    "alert_urls_secret_arn": "arn:aws:secretsmanager:eu-central-1:1:secret:perennial/alert-urls-b",
    "deletion_protection": True,
}


def told(values: dict[str, object]) -> str:
    """As `terraform output -json` prints it."""
    return json.dumps({name: {"sensitive": False, "type": "string", "value": value} for name, value in values.items()})


def outputs(folder: Path, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "perennial.cli", "infra", "outputs", *command]
    return subprocess.run(call, env=environment, cwd=folder, input=stdin, capture_output=True, text=True, timeout=60)


def test_a_shell_that_evaluates_the_lines_has_the_settings(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text(told(VALUES))
    said = outputs(tmp_path, "outputs.json")
    assert said.returncode == 0, said.stderr
    printed = subprocess.run(
        ["sh", "-c", f'{said.stdout}\n{sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(printed.stdout)
    expected = settings_of(read_outputs(told(VALUES), "a test"))
    assert {name: found[name] for name in expected} == expected
    assert found["PERENNIAL_DATABASE_URL"] == "postgresql+psycopg://db.example:5432/perennial?sslmode=require"
    assert found["PERENNIAL_DATABASE_SECRET_ARN"] == VALUES["database_secret_arn"]


def test_perennial_reads_them_as_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = outputs(tmp_path, "-", "--env", stdin=told(VALUES))
    for line in said.stdout.splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    found = Settings(home=tmp_path)
    assert found.kafka_options == VALUES["kafka_options"]
    assert found.kafka_bootstrap_servers == VALUES["kafka_bootstrap_servers"]
    assert (found.warehouse, found.catalog_uri) == (VALUES["lake_warehouse"], VALUES["lake_catalog_uri"])


def test_a_file_of_lines_can_be_read_by_a_shell_as_well(tmp_path: Path) -> None:
    (tmp_path / "addresses.env").write_text(outputs(tmp_path, "-", "--env", stdin=told(VALUES)).stdout)
    read = subprocess.run(
        ["sh", "-c", f'. "{tmp_path}/addresses.env"; echo "$WORKER_REPOSITORY"'], capture_output=True, text=True
    )
    assert (read.stdout.strip(), read.stderr) == (VALUES["image_repositories"]["worker"], "")


def test_as_json_it_is_one_object(tmp_path: Path) -> None:
    said = outputs(tmp_path, "-", "--json", stdin=told(VALUES))
    assert json.loads(said.stdout)["PERENNIAL_ONLINE_STORE_URL"] == "rediss://redis.example:6379/0"


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_the_lines_are_those_that_the_cluster_is_told(overlay: str) -> None:
    example = (ROOT / "infra/kubernetes/overlays" / overlay / "addresses.env.example").read_text()
    told_to = cluster_addresses(read_outputs(told(VALUES), "a test"))
    assert sorted(line.partition("=")[0] for line in example.splitlines()) == sorted(told_to)


def test_every_output_that_is_asked_for_is_one_of_terraforms() -> None:
    declared = set(re.findall(r'^output "(\w+)"', (ROOT / "infra/terraform/outputs.tf").read_text(), re.MULTILINE))
    assert NEEDED.keys() <= declared


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ("region = us-east-1", "is not JSON"),
        ("", "is empty"),
        ("[]", "is no JSON object"),
        ('{"region": "us-east-1"}', "is not what `terraform output -json` writes"),
        ('{"format_version": "1.2"}', "is a plan or a state"),
        ("{}", "run `terraform apply` first"),
        (told({"vpc_id": "vpc-1"}), "has the outputs of something else (vpc_id)"),
        (told({**VALUES, "kafka_bootstrap_servers": ""}), "has no kafka_bootstrap_servers"),
        (told({**VALUES, "image_repositories": {"worker": "w"}}), "image_repositories has no service"),
        (told({**VALUES, "database_port": "many"}), "database_port is 'many'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_mend(given: str, mend: str) -> None:
    with pytest.raises(PerennialError, match=re.escape(mend)):
        read_outputs(given, "outputs.json")


def test_the_command_ends_with_a_sentence(tmp_path: Path) -> None:
    for arguments, sentence in (
        (("absent.json",), "absent.json cannot be read"),
        (("-", "--env", "--json"), "--env and --json are two ways to write"),
    ):
        said = outputs(tmp_path, *arguments)
        assert said.returncode == 2
        assert sentence in said.stderr
        assert "Traceback" not in said.stderr
