"""`perennial doctor` and servers: MLflow, where models go, alerts, the Pushgateway, AWS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aws_account import account as account
from aws_account import client
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account
from findings_seen import FAIL, INCONCLUSIVE, PASS, said, status
from refusing import refusing

from perennial.doctor import aws, servers
from perennial.doctor.findings import Finding
from perennial.settings import Settings

if TYPE_CHECKING:
    pass


def objects(bucket: str) -> list[str]:
    told = client("s3").list_object_versions(Bucket=bucket)
    return [v["Key"] for v in (*told.get("Versions", []), *told.get("DeleteMarkers", []))]


def test_mlflow_and_where_its_models_go(tmp_path: Path, mlflow_server: str) -> None:
    settings = Settings(home=tmp_path, mlflow_tracking_uri=mlflow_server)
    assert status(servers.mlflow(settings)) is PASS
    finding = servers.artifacts(settings, "shop")
    assert status(finding) is PASS
    assert "can be written to" in said(finding)


def test_another_server_in_mlflows_place_is_told(tmp_path: Path, account: str) -> None:
    finding = servers.mlflow(Settings(home=tmp_path, mlflow_tracking_uri=account))
    assert status(finding) is FAIL
    assert "MLFLOW_TRACKING_URI" in said(finding)


def test_a_bucket_of_models_is_tried_without_a_trace(account: str) -> None:
    bucket = f"artifacts-{time.monotonic_ns()}"
    client("s3").create_bucket(Bucket=bucket)
    client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert status(servers.try_bucket(bucket, "mlflow")) is PASS
    assert objects(bucket) == []
    finding = servers.try_bucket("nobodys-bucket", "mlflow")
    assert status(finding) is FAIL
    assert "there is no such bucket" in said(finding)


def test_who_may_not_delete_is_told_what_stays(account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"artifacts-{time.monotonic_ns()}"
    client("s3").create_bucket(Bucket=bucket)
    with refusing(account, "DELETE") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        finding = servers.try_bucket(bucket, "mlflow")
    monkeypatch.setenv("AWS_ENDPOINT_URL", account)
    (left,) = [one["Key"] for one in client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    assert status(finding) is FAIL
    assert f"{left} is left there" in said(finding)
    assert "delete objects" in said(finding)


def test_where_fits_keep_their_progress_is_tried(tmp_path: Path, account: str) -> None:
    bucket = f"artifacts-{time.monotonic_ns()}"
    client("s3").create_bucket(Bucket=bucket)

    def found(address: str) -> Finding:
        return servers.checkpoints(Settings(home=tmp_path, checkpoints=address))

    assert status(found(f"s3://{bucket}/checkpoints/")) is PASS
    assert client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert "there is no such bucket" in said(found("s3://nobodys-bucket/checkpoints"))
    assert status(found(str(tmp_path / "kept"))) is PASS
    assert status(found("gs://bucket/checkpoints")) is FAIL
    assert not (tmp_path / "kept").exists()


def test_alert_urls_are_read_and_no_message_is_sent(tmp_path: Path, free_port: int) -> None:
    good = Settings(home=tmp_path, alert_urls=f"json://127.0.0.1:{free_port}/hunter2")
    assert status(servers.alerts(good)) is PASS
    bad = Settings(home=tmp_path, alert_urls="slakc://hunter2")
    for settings in (good, bad):
        assert "hunter2" not in said(servers.alerts(settings))
    assert status(servers.alerts(bad)) is FAIL
    assert status(servers.alerts(Settings(home=tmp_path))) is INCONCLUSIVE


def test_the_pushgateway(tmp_path: Path, pushgateway: str) -> None:
    assert status(servers.pushgateway(Settings(home=tmp_path, pushgateway_url=pushgateway))) is PASS


def test_a_pushgateway_that_is_not_there(tmp_path: Path, free_port: int) -> None:
    url = f"http://me:hunter2@127.0.0.1:{free_port}"
    finding = servers.pushgateway(Settings(home=tmp_path, pushgateway_url=url))
    assert status(finding) is FAIL
    assert "PERENNIAL_PUSHGATEWAY_URL" in said(finding)
    assert "hunter2" not in said(finding)


def test_whose_credentials_these_are(tmp_path: Path, account: str) -> None:
    finding = aws.identity(Settings(home=tmp_path, lake_catalog_uri="glue://us-east-1"))
    assert status(finding) is PASS
    assert "arn:aws:" in said(finding)
    finding = aws.identity(Settings(home=tmp_path, lake_catalog_uri="glue://eu-central-1"))
    assert status(finding) is FAIL
    assert "the lake's catalog is in eu-central-1" in said(finding)


def test_no_credentials_and_no_region_are_told(tmp_path: Path, no_account: pytest.MonkeyPatch) -> None:
    finding = aws.identity(Settings(home=tmp_path, lake_catalog_uri="glue://us-east-1"))
    assert status(finding) is FAIL
    assert "NoCredentialsError" in said(finding)
    assert "give credentials" in said(finding)
    no_account.setenv("AWS_REGION", "us-east-1")
    iam = {"sasl_mechanism": "AWS_MSK_IAM", "security_protocol": "SASL_SSL"}
    finding = aws.identity(Settings(home=tmp_path, kafka_options=iam))
    assert "AWS_REGION alone is not looked at" in said(finding)


def test_where_aws_cannot_be_reached_nobody_is_sent_for_credentials(
    tmp_path: Path, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    finding = aws.identity(Settings(home=tmp_path, lake_catalog_uri="glue://us-east-1"))
    assert status(finding) is FAIL
    assert "AWS does not answer (EndpointConnectionError)" in said(finding)
    assert "credentials" not in said(finding)
    finding = servers.try_bucket("anybodys", "mlflow")
    assert status(finding) is FAIL
    assert "PERENNIAL_LAKE" not in said(finding)  # it is not the lake that was looked at


def test_kafka_python_indeed_looks_at_another_variable_for_its_region(no_account: pytest.MonkeyPatch) -> None:
    from botocore.session import Session

    no_account.setenv("AWS_REGION", "us-east-1")
    assert Session().get_config_variable("region") is None
    no_account.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert Session().get_config_variable("region") == "us-east-1"
