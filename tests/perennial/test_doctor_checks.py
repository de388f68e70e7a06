"""Each check of `perennial doctor` against real systems, well and broken."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_account import account as account
from aws_account import client
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account
from conftest import Broker
from packaging.requirements import Requirement
from postgres import postgres as postgres

from features.broker import ensure_topics
from perennial.doctor import aws, machine, servers, stores, stream
from perennial.doctor.findings import Finding, passed, run_checks
from perennial.errors import UsageError
from perennial.settings import Settings
from rollout.ledger import Ledger
from validation.verdict import Status

PASS, INCONCLUSIVE, ERROR, FAIL = Status.PASS, Status.INCONCLUSIVE, Status.ERROR, Status.FAIL


def status(finding: Finding) -> Status:
    assert finding.verdict.status is PASS or finding.mend or finding.verdict.status is FAIL
    return finding.verdict.status


def said(finding: Finding) -> str:
    return f"{finding.verdict.reason} -> {finding.mend}"


# How they are run


def test_checks_run_side_by_side_and_one_that_hangs_keeps_nobody() -> None:
    forever = threading.Event()
    both = threading.Barrier(2, timeout=10)

    def meets() -> Finding:
        both.wait()  # alone it would never come on
        return passed("met")

    def hangs() -> Finding:
        forever.wait()
        return passed("never")

    begin = time.monotonic()
    found = run_checks({"hangs": hangs, "one": meets, "other": meets}, limit_s=1.0)
    assert time.monotonic() - begin < 5
    assert [f.verdict.status for f in found.values()] == [ERROR, PASS, PASS]
    assert list(found) == ["hangs", "one", "other"]
    assert "no answer within 1 s" in said(found["hangs"])
    forever.set()


def test_a_check_that_breaks_is_an_error_and_its_words_are_kept_back() -> None:
    def breaks() -> Finding:
        raise RuntimeError("postgresql://me:hunter2@db")

    def refuses() -> Finding:
        raise UsageError("the value is 3; write 4")

    found = run_checks({"breaks": breaks, "refuses": refuses}, limit_s=5.0)
    assert status_of(found, "breaks") is ERROR
    assert "hunter2" not in said(found["breaks"])
    assert "RuntimeError" in said(found["breaks"])
    assert (status_of(found, "refuses"), found["refuses"].verdict.reason) == (FAIL, "the value is 3; write 4")


def status_of(found: dict[str, Finding], name: str) -> Status:
    return found[name].verdict.status


# This computer


def test_an_old_python_fails() -> None:
    assert status(machine.python((3, 10, 9))) is FAIL
    assert status(machine.python()) is PASS


def test_packages_as_they_are_installed_fit_what_perennial_asks_for() -> None:
    assert said(machine.packages()).startswith("4"), said(machine.packages())
    assert status(machine.packages()) is PASS


def test_a_package_of_the_wrong_version_fails_and_says_why_it_matters() -> None:
    wrong = [Requirement("fastapi<0.1"), Requirement("no-such-package>=1"), Requirement("rich>=1")]
    wrong.append(Requirement("also-missing; python_version < '3'"))
    finding = machine.packages(wrong)
    assert status(finding) is FAIL
    assert "Prefect's server does not start" in said(finding)
    assert "no-such-package is not installed" in said(finding)
    assert "rich" not in said(finding)
    assert "also-missing" not in said(finding)


def test_a_home_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine.home(tmp_path / "file" / "home")
    assert status(finding) is FAIL
    assert "is a file" in said(finding)
    assert status(machine.home(Path("/proc/perennial"))) is FAIL  # where not even root can make a folder
    assert status(machine.home(Path("/sys"))) is FAIL


def test_a_home_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    finding = machine.home(tmp_path / "a" / "b")
    assert "not made yet" in said(finding)
    assert "free_gb" in finding.verdict.measurements
    assert list(tmp_path.iterdir()) == []


# Kafka


def kafka_settings(tmp_path: Path, address: str, **options: Any) -> Settings:
    return Settings(home=tmp_path, kafka_bootstrap_servers=address, kafka_options=options)


def test_a_broker_that_answers_passes(tmp_path: Path, broker: Broker) -> None:
    finding = stream.kafka(kafka_settings(tmp_path, broker.address))
    assert status(finding) is PASS
    assert broker.address in said(finding)
    assert "PLAINTEXT" in said(finding)


def test_one_of_several_addresses_is_enough(tmp_path: Path, broker: Broker, free_port: int) -> None:
    assert status(stream.kafka(kafka_settings(tmp_path, f"127.0.0.1:{free_port},{broker.address}"))) is PASS


@pytest.mark.parametrize(
    ("address", "why"),
    [("127.0.0.1:{port}", "refused"), ("no.such.host.invalid:9092", "no such host"), ("nonsense", "is not host:port")],
)
def test_a_broker_that_is_not_there_fails_with_the_reason(
    tmp_path: Path, free_port: int, address: str, why: str
) -> None:
    settings = kafka_settings(tmp_path, address.format(port=free_port))
    for finding in (stream.kafka(settings), stream.topics(settings, ["shop.sold.v1"])):
        assert status(finding) is FAIL
        assert why in said(finding)
        assert "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS" in said(finding)


def test_without_a_stack_or_an_address_it_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    settings = Settings(home=tmp_path)
    nowhere = settings.model_copy(
        update={
            "kafka_bootstrap_servers": f"127.0.0.1:{free_port}",
            "mlflow_tracking_uri": f"http://127.0.0.1:{free_port}",
        }
    )
    nowhere.model_fields_set.discard("kafka_bootstrap_servers")
    nowhere.model_fields_set.discard("mlflow_tracking_uri")
    for finding in (stream.kafka(nowhere), servers.mlflow(nowhere)):
        assert status(finding) is INCONCLUSIVE
        assert "no stack runs here" in said(finding)
        assert "perennial up" in said(finding)


def test_topics_that_are_there_pass_and_those_that_are_not_are_named_and_not_made(
    tmp_path: Path, broker: Broker
) -> None:
    settings = kafka_settings(tmp_path, broker.address)
    mine = f"doctor{time.monotonic_ns()}.sold.v1"
    ensure_topics(settings, [mine], partitions=3)
    finding = stream.topics(settings, [mine])
    assert status(finding) is PASS
    assert "1 topic with 3 partitions" in said(finding)
    missing = mine.replace("sold", "bought")
    for _ in range(2):
        finding = stream.topics(settings, [mine, missing])
        assert status(finding) is FAIL
        assert f"{missing} is not there" in said(finding)
        assert f"{mine} " not in said(finding)


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """Somebody who speaks TLS and says nothing more."""
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *made, "-subj", "/CN=localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(plain: socket.socket) -> None:
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(1)
            except OSError:
                return

        def serve() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(plain,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_plain_words_to_a_port_that_speaks_tls_are_told_from_nobody_there(tmp_path: Path, tls_port: int) -> None:
    finding = stream.kafka(kafka_settings(tmp_path, f"127.0.0.1:{tls_port}"))
    assert status(finding) is FAIL
    assert "speaks TLS, and the settings do not" in said(finding)
    assert "security_protocol" in said(finding)


def test_tls_to_a_port_that_speaks_plain_words_is_told(tmp_path: Path, broker: Broker) -> None:
    finding = stream.kafka(kafka_settings(tmp_path, broker.address, security_protocol="SSL"))
    assert status(finding) is FAIL
    assert "does not speak TLS, and the settings do" in said(finding)


def test_something_else_than_kafka_is_told(tmp_path: Path, mlflow_server: str) -> None:
    finding = stream.kafka(kafka_settings(tmp_path, mlflow_server.removeprefix("http://")))
    assert status(finding) is FAIL
    assert "does not answer as Kafka" in said(finding)


def test_an_option_that_kafka_does_not_know_is_told(tmp_path: Path, broker: Broker) -> None:
    settings = kafka_settings(tmp_path, broker.address, sasl_mechanisn="PLAIN")
    found = run_checks({"kafka": lambda: stream.kafka(settings)}, 10)
    assert status_of(found, "kafka") is FAIL
    assert "sasl_mechanisn" in said(found["kafka"])


# The ledger


def test_a_ledger_in_a_file_is_not_made_by_looking(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert status(stores.ledger(settings)) is INCONCLUSIVE
    assert not (tmp_path / "home").exists()
    Ledger(settings.ledger_url).state("shop")
    assert status(stores.ledger(settings)) is PASS


def test_a_ledger_in_postgresql_passes_and_nothing_is_left_in_it(tmp_path: Path, postgres: str) -> None:
    settings = Settings(home=tmp_path, database_url=postgres)
    Ledger(postgres).state("shop")
    folder = postgres.partition("host=")[2]
    with psycopg.connect(f"host={folder} user=perennial dbname=postgres", autocommit=True) as owner:
        count = "SELECT count(*) FROM canary_leases"
        before = owner.execute(count).fetchone()
        finding = stores.ledger(settings)
        assert (status(finding), "clocks agree" in said(finding)) == (PASS, True)
        assert owner.execute(count).fetchone() == before
        owner.execute("ALTER TABLE serving_observations RENAME COLUMN failed_calls TO other")
        try:
            finding = stores.ledger(settings)
        finally:
            owner.execute("ALTER TABLE serving_observations RENAME COLUMN other TO failed_calls")
    assert status(finding) is INCONCLUSIVE
    assert "serving_observations.failed_calls" in said(finding)


def test_a_ledger_that_may_only_be_read_fails(tmp_path: Path, postgres: str) -> None:
    Ledger(postgres).state("shop")
    folder = postgres.partition("host=")[2]
    reader = f"reader_{time.monotonic_ns()}"
    with psycopg.connect(f"host={folder} user=perennial dbname=postgres", autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {reader} LOGIN IN ROLE pg_read_all_data")
    settings = Settings(home=tmp_path, database_url=postgres.replace("perennial@", f"{reader}@"))
    found = run_checks({"ledger": lambda: stores.ledger(settings)}, 10)
    assert status_of(found, "ledger") is FAIL
    assert "permission denied" in said(found["ledger"])


def test_clocks_that_disagree_are_told(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=60)

    Ledger(postgres).state("shop")
    monkeypatch.setattr(stores, "datetime", Ahead)
    finding = stores.ledger(Settings(home=tmp_path, database_url=postgres))
    assert status(finding) is FAIL
    assert "60 s apart" in said(finding)


@pytest.mark.parametrize("kind", ["nobody listens", "no password"])
def test_a_database_that_does_not_answer_fails_without_its_password(tmp_path: Path, free_port: int, kind: str) -> None:
    user = "me:hunter2@" if kind == "nobody listens" else "me@"
    settings = Settings(home=tmp_path, database_url=f"postgresql+psycopg://{user}127.0.0.1:{free_port}/db")
    found = run_checks({"ledger": lambda: stores.ledger(settings)}, 10)
    assert status_of(found, "ledger") is FAIL
    assert "PERENNIAL_DATABASE_URL" in said(found["ledger"])
    assert "hunter2" not in said(found["ledger"])


# The lake


def test_a_lake_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert status(stores.lake_catalog(settings, "shop")) is INCONCLUSIVE
    assert status(stores.lake_files(settings)) is PASS
    assert not (tmp_path / "home").exists()


def in_s3(tmp_path: Path, address: str, warehouse: str, **more: Any) -> Settings:
    keys = {"client.access-key-id": "key", "client.secret-access-key": "kept-out-of-messages"}
    options = {"s3.endpoint": address, "glue.endpoint": address, **keys}
    return Settings(home=tmp_path, lake_warehouse=warehouse, lake_options=options, **more)


def objects(bucket: str) -> list[str]:
    told = client("s3").list_object_versions(Bucket=bucket)
    return [v["Key"] for v in (*told.get("Versions", []), *told.get("DeleteMarkers", []))]


def test_a_lake_in_s3_and_glue_passes_and_nothing_is_left_there(tmp_path: Path, account: str) -> None:
    bucket = f"lake-{time.monotonic_ns()}"
    client("s3").create_bucket(Bucket=bucket)
    settings = in_s3(tmp_path, account, f"s3://{bucket}/lake", lake_catalog_uri="glue://us-east-1")
    assert status(stores.lake_files(settings)) is PASS
    assert objects(bucket) in ([], ["lake/"])  # Arrow's mark of a folder, where there was none
    client("s3").put_object(Bucket=bucket, Key="lake/shop.db/sold/data/1.parquet", Body=b"rows")
    before = objects(bucket)
    assert status(stores.lake_files(settings)) is PASS
    assert objects(bucket) == before
    missing = stores.lake_catalog(settings, "shop")
    assert status(missing) is FAIL
    assert "add 'shop' to `pipelines` of infra/terraform" in said(missing)
    client("glue").create_database(DatabaseInput={"Name": "shop"})
    assert status(stores.lake_catalog(settings, "shop")) is PASS


def test_a_bucket_that_is_not_there_fails(tmp_path: Path, account: str) -> None:
    finding = stores.lake_files(in_s3(tmp_path, account, "s3://nobodys-bucket/lake"))
    assert status(finding) is FAIL
    assert "there is no such bucket" in said(finding)
    assert "kept-out-of-messages" not in said(finding)


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (
            "When writing: AWS Error ACCESS_DENIED during PutObject operation: User is not authorized to perform: "
            "kms:GenerateDataKey on resource",
            "kms:Decrypt and kms:GenerateDataKey",
        ),
        ("AWS Error ACCESS_DENIED during PutObject operation: Access Denied", "put, get and delete"),
        ("An error occurred (NoSuchBucket) when calling the PutObject operation", "no such bucket"),
        ("Unable to locate credentials", "aws sso login"),
        ("curlCode: 7, Couldn't connect to server", "PERENNIAL_LAKE_OPTIONS"),
    ],
)
def test_refusals_of_s3_have_each_their_mend(words: str, mend: str) -> None:
    assert mend in stores.mend_of_s3(words)


# The online store


def test_a_redis_that_answers_passes_and_a_replica_does_not(tmp_path: Path, free_port: int) -> None:
    url = f"redis://:p@127.0.0.1:{free_port}/0"
    settings = Settings(home=tmp_path, online_store_url=url.replace(":p@", ":p%40@"))
    check = {"redis": lambda: stores.online_store(settings)}
    assert status_of(found := run_checks(check, 10), "redis") is FAIL
    assert "does not answer" in said(found["redis"])
    command = ["redis-server", "--port", str(free_port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "p@"]
    try:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip("redis-server is not installed")
    try:
        assert server.stdout is not None
        assert any("Ready to accept connections" in line for line in server.stdout)
        assert status_of(found := run_checks(check, 10), "redis") is PASS
        assert "p%40" not in said(found["redis"])
        wrong = Settings(home=tmp_path, online_store_url=url.replace(":p@", ":other@"))
        found = run_checks({"redis": lambda: stores.online_store(wrong)}, 10)
        assert status_of(found, "redis") is FAIL
        assert "other" not in said(found["redis"])
        import redis

        redis.Redis(port=free_port, password="p@").replicaof("127.0.0.1", "1")
        assert status_of(found := run_checks(check, 10), "redis") is FAIL
        assert "is a replica" in said(found["redis"])
    finally:
        server.terminate()
        server.wait(20)


# Servers


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


# AWS


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
    no_account.setenv("AWS_REGION", "us-east-1")
    iam = {"sasl_mechanism": "AWS_MSK_IAM", "security_protocol": "SASL_SSL"}
    finding = aws.identity(Settings(home=tmp_path, kafka_options=iam))
    assert "AWS_REGION alone is not looked at" in said(finding)


def test_kafka_python_indeed_looks_at_another_variable_for_its_region(no_account: pytest.MonkeyPatch) -> None:
    from botocore.session import Session

    no_account.setenv("AWS_REGION", "us-east-1")
    assert Session().get_config_variable("region") is None
    no_account.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert Session().get_config_variable("region") == "us-east-1"


# The command


def doctor(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    import os

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PERENNIAL_HOME": str(home), "COLUMNS": "80"}
    command = [sys.executable, "-m", "perennial.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)


def test_a_new_computer_is_told_what_is_not_there_and_nothing_is_made(tmp_path: Path) -> None:
    ended = doctor(tmp_path / "home", "flights")
    assert "topics" in ended.stdout
    assert "perennial up" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert not (tmp_path / "home").exists()


def test_a_failure_is_status_1_and_json_says_which(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    monkeypatch.setenv("PERENNIAL_KAFKA_BOOTSTRAP_SERVERS", broker.address)
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql+psycopg://me:hunter2@127.0.0.1:{free_port}/db")
    ended = doctor(tmp_path / "home", "--json")
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["healthy"]) == (1, False)
    assert told["checks"]["kafka"]["status"] == "PASS"
    assert told["checks"]["ledger"]["status"] == "FAIL"
    assert "hunter2" not in ended.stdout + ended.stderr


def test_a_pipeline_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "nobody")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "nobody" in ended.stderr
