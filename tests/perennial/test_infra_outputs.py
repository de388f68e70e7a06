"""`perennial infra outputs`: what Terraform made, as settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perennial.infra_outputs import NEEDED
from perennial.settings import Settings

ROOT = Path(__file__).parents[2]
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
OPTIONS = {"security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM"}
VALUES: dict[str, Any] = {
    "region": "eu-central-1",
    "account_id": "123456789012",
    "cluster_name": "perennial",
    "image_repositories": {"worker": "1.dkr.ecr/perennial/worker", "service": "1.dkr.ecr/perennial/service"},
    "kafka_bootstrap_servers": "b-1.k:9098,b-2.k:9098",
    "kafka_options": OPTIONS,
    "lake_warehouse": "s3://perennial-lake/lake",
    "lake_catalog_uri": "glue://eu-central-1",
    "checkpoints": "s3://perennial-artifacts/checkpoints",
    "mlflow_artifact_root": "s3://perennial-artifacts/mlflow",
    "database_host": "perennial.rds",
    "database_port": 5432,
    "database_name": "perennial",
    "database_secret_arn": f"{ARN}rds!db-1",
    "online_store_host": "perennial.cache",
    "online_store_port": 6379,
    "online_store_secret_arn": f"{ARN}perennial/it's",
    "alert_urls_secret_arn": f"{ARN}perennial/alert-urls",
    "alert_topic_arn": "arn:aws:sns:eu-central-1:1:perennial-alerts",
    "disk_key_arn": "arn:aws:kms:eu-central-1:1:key/disks",
    "deletion_protection": True,
}


def as_terraform_writes(values: dict[str, Any]) -> str:
    return json.dumps({n: {"sensitive": False, "type": "string", "value": v} for n, v in values.items()})


def outputs(
    *arguments: str, told: str = "", path: str | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"PATH": path} if path is not None else {})}
    command = [sys.executable, "-m", "perennial.cli", "infra", "outputs", *arguments]
    return subprocess.run(command, input=told, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


def test_a_shell_gets_settings_that_point_at_aws(tmp_path: Path) -> None:
    file = tmp_path / "outputs.json"
    file.write_text(as_terraform_writes(VALUES))
    lines = outputs(str(file)).stdout
    # A real shell reads them, and perennial's own settings what the shell exports.
    print_them = "import os, json; print(json.dumps(dict(os.environ)))"
    shell = subprocess.run(
        ["sh", "-c", f'{lines}\n"{sys.executable}" -c "{print_them}"'],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=True,
    )
    exported = json.loads(shell.stdout)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in exported.items():
            if name.startswith("PERENNIAL_"):
                patch.setenv(name, value)
        read = Settings(home=tmp_path)
    assert read.kafka_bootstrap_servers == "b-1.k:9098,b-2.k:9098"
    assert read.kafka_options == OPTIONS
    assert (read.lake_warehouse, read.lake_catalog_uri) == ("s3://perennial-lake/lake", "glue://eu-central-1")
    assert read.database_url == "postgresql+psycopg://perennial.rds:5432/perennial?sslmode=require"
    assert read.database_secret_arn == f"{ARN}rds!db-1"
    assert read.online_store_url == "rediss://perennial.cache:6379/0"
    assert read.online_store_secret_arn == f"{ARN}perennial/it's"
    assert exported["AWS_REGION"] == exported["AWS_DEFAULT_REGION"] == "eu-central-1"


def test_json_says_the_same_as_the_shell(tmp_path: Path) -> None:
    told = as_terraform_writes(VALUES)
    settings = json.loads(outputs("-", "--json", told=told).stdout)
    names = re.findall(r"^export (\w+)=", outputs("-", told=told).stdout, re.MULTILINE)
    assert list(settings) == names


def test_the_cluster_gets_plain_lines_as_env_files_have_them() -> None:
    ended = outputs("-", "--env", told=as_terraform_writes(VALUES))
    assert dict(line.split("=", 1) for line in ended.stdout.splitlines()) == {
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": "b-1.k:9098,b-2.k:9098",
        "PERENNIAL_KAFKA_OPTIONS": '{"security_protocol":"SASL_SSL","sasl_mechanism":"AWS_MSK_IAM"}',
        "PERENNIAL_LAKE_WAREHOUSE": "s3://perennial-lake/lake",
        "PERENNIAL_LAKE_CATALOG_URI": "glue://eu-central-1",
        "PERENNIAL_CHECKPOINTS": "s3://perennial-artifacts/checkpoints",
        "CLUSTER_NAME": "perennial",
        "WORKER_REPOSITORY": "1.dkr.ecr/perennial/worker",
        "SERVICE_REPOSITORY": "1.dkr.ecr/perennial/service",
        "MLFLOW_ARTIFACT_ROOT": "s3://perennial-artifacts/mlflow",
        "DATABASE_HOST": "perennial.rds",
        "DATABASE_PORT": "5432",
        "DATABASE_NAME": "perennial",
        "DATABASE_SECRET_ARN": f"{ARN}rds!db-1",
        "ONLINE_STORE_SECRET_ARN": f"{ARN}perennial/it's",
        "ALERT_URLS_SECRET_ARN": f"{ARN}perennial/alert-urls",
        "ALERT_TOPIC_ARN": "arn:aws:sns:eu-central-1:1:perennial-alerts",
        "DISK_KEY_ARN": "arn:aws:kms:eu-central-1:1:key/disks",
    }


def test_every_output_that_is_read_is_one_of_infra_terraform() -> None:
    from perennial.infra_outputs import NEEDED

    written = set(re.findall(r'^output "(\w+)"', (ROOT / "infra/terraform/outputs.tf").read_text(), re.MULTILINE))
    assert set(NEEDED) <= written


WRONG = {
    "nothing applied": ("{}", "nothing has been applied there; run `terraform apply` first"),
    "no JSON": ("│ Warning: No outputs found", "is not JSON; write it with `terraform output -json`"),
    "empty": ("", "is empty; write it with `terraform output -json`"),
    "a list": ("[1]", "is no JSON object"),
    "another project": (as_terraform_writes({"vpc_id": "vpc-1"}), r"outputs of something else \(vpc_id\)"),
    "one output alone": (json.dumps(VALUES), "is not what `terraform output -json` writes"),
    "a plan": (json.dumps({"format_version": "1.2", "values": {}}), "is a plan or a state"),
    "half applied": (
        as_terraform_writes({n: v for n, v in VALUES.items() if not n.startswith("database_")}),
        "has no database_host, database_port, .*: an apply did not come to its end",
    ),
    "not known yet": (as_terraform_writes({**VALUES, "kafka_bootstrap_servers": ""}), "has no kafka_bootstrap_servers"),
    "of another shape": (as_terraform_writes({**VALUES, "database_port": "5432"}), "database_port is '5432', not as"),
    "without an image": (as_terraform_writes({**VALUES, "image_repositories": {"worker": "w"}}), "has no service"),
    "with two lines": (as_terraform_writes({**VALUES, "cluster_name": "a\nb"}), "CLUSTER_NAME has more than one line"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_told_in_a_sentence(case: str) -> None:
    told, sentence = WRONG[case]
    ended = outputs("-", "--env", told=told)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.search(f"^perennial: .*{sentence}", ended.stderr), ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_told() -> None:
    assert "/no/such.json cannot be read (No such file or directory)" in outputs("/no/such.json").stderr


def test_a_plan_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"PK\x03\x04\xff\xfe")
    assert (
        f"is no text; a plan becomes JSON by `terraform show -json {tmp_path}/plan`"
        in outputs(str(tmp_path / "plan")).stderr
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_powershell_redirected_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "outputs.json").write_bytes(as_terraform_writes(VALUES).encode(encoding))
    ended = outputs(str(tmp_path / "outputs.json"), "--json")
    assert json.loads(ended.stdout)["AWS_REGION"] == "eu-central-1", ended.stderr


def test_the_readme_names_every_setting() -> None:
    text = (ROOT / "README.md").read_text()
    names = [
        str(field.validation_alias) if field.validation_alias else f"PERENNIAL_{name.upper()}"
        for name, field in Settings.model_fields.items()
    ]
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in text] == []


def test_without_terraform_a_file_is_asked_for(tmp_path: Path) -> None:
    ended = outputs(path=str(tmp_path))
    assert ended.returncode == 2
    assert "terraform is not installed here; name a file" in ended.stderr


def test_two_ways_to_write_are_refused() -> None:
    assert "leave one out" in outputs("-", "--env", "--json", told="{}").stderr


def test_a_shell_can_read_the_clusters_lines_too(tmp_path: Path) -> None:
    plain = {**VALUES, "online_store_secret_arn": f"{ARN}perennial/online-store"}
    (tmp_path / "addresses.env").write_text(outputs("-", "--env", told=as_terraform_writes(plain)).stdout)
    command = f'. "{tmp_path}/addresses.env"; echo "$WORKER_REPOSITORY"'
    read = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (read.stdout.strip(), read.stderr) == ("1.dkr.ecr/perennial/worker", "")


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_the_clusters_lines_are_those_of_its_example(overlay: str) -> None:
    example = (ROOT / "infra/kubernetes/overlays" / overlay / "addresses.env.example").read_text()
    printed = outputs("-", "--env", told=as_terraform_writes(VALUES)).stdout
    names, expected = (sorted(line.partition("=")[0] for line in text.splitlines()) for text in (printed, example))
    assert names == expected


def test_every_output_that_is_needed_is_one_of_terraforms() -> None:
    declared = re.findall(r'^output "(\w+)"', (ROOT / "infra/terraform/outputs.tf").read_text(), re.MULTILINE)
    assert NEEDED.keys() <= set(declared)
