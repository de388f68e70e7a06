"""`perennial doctor` and what is kept: PostgreSQL, S3 and Glue, Redis."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from aws_account import account as account
from aws_account import client
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account
from findings_seen import FAIL, INCONCLUSIVE, PASS, said, status, status_of
from postgres import postgres as postgres
from refusing import refusing

from features.catalog import catalog_of
from perennial.doctor import stores
from perennial.doctor.findings import run_checks
from perennial.settings import Settings
from rollout.ledger import Ledger

if TYPE_CHECKING:
    pass


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


def test_a_user_who_may_make_no_tables_fails_before_anybody_needs_them(tmp_path: Path, postgres: str) -> None:
    folder = postgres.partition("host=")[2]
    name = f"poor_{time.monotonic_ns()}"
    with psycopg.connect(f"host={folder} user=perennial dbname=postgres", autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name}")
        owner.execute(f"CREATE ROLE {name} LOGIN")
    # PostgreSQL 15 and newer let only a database's owner make tables in it; older ones are asked the same way.
    with psycopg.connect(f"host={folder} user=perennial dbname={name}", autocommit=True) as owner:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    settings = Settings(home=tmp_path, database_url=f"postgresql+psycopg://{name}@/{name}?host={folder}")
    finding = stores.ledger(settings)
    assert status(finding) is FAIL
    assert "may not make its tables" in said(finding)
    with psycopg.connect(f"host={folder} user=perennial dbname={name}", autocommit=True) as owner:
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
    assert status(stores.ledger(settings)) is INCONCLUSIVE


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


def test_a_lake_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert status(stores.lake_catalog(settings, "shop")) is INCONCLUSIVE
    assert status(stores.lake_files(settings)) is PASS
    assert not (tmp_path / "home").exists()


def test_a_lake_catalog_in_postgresql_is_not_made_by_looking(tmp_path: Path, postgres: str) -> None:
    name = f"lake_{time.monotonic_ns()}"
    server = postgres.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name}")
    uri = server.replace("/postgres?", f"/{name}?")
    settings = Settings(home=tmp_path, lake_catalog_uri=uri)
    finding = stores.lake_catalog(settings, "shop")
    assert (status(finding), "no lake yet" in said(finding)) == (INCONCLUSIVE, True)
    with psycopg.connect(uri) as mine:
        assert mine.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    catalog_of(settings).create_namespace("shop")
    assert status(stores.lake_catalog(settings, "shop")) is PASS
    with_password = Settings(home=tmp_path, lake_catalog_uri="postgresql://me:hunter2@127.0.0.1:1/lake")
    found = run_checks({"lake": lambda: stores.lake_catalog(with_password, "shop")}, 20)
    assert status_of(found, "lake") is FAIL
    assert "hunter2" not in said(found["lake"])


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


def test_a_role_that_sees_its_own_database_only_is_enough(tmp_path: Path, account: str) -> None:
    uri = {"lake_catalog_uri": "glue://us-east-1"}
    with refusing(account, "AWSGlue.GetDatabases") as address:
        name = f"shop{time.monotonic_ns()}"
        client("glue").create_database(DatabaseInput={"Name": name})
        mine = in_s3(tmp_path, address, "s3://bucket/lake", **uri)
        assert status(stores.lake_catalog(mine, name)) is PASS
        assert status(stores.lake_catalog(mine, "other")) is FAIL
        nobodys = stores.lake_catalog(mine, None)
        assert (status(nobodys), "list its databases" in said(nobodys)) == (INCONCLUSIVE, True)
    with refusing(account, "AWSGlue.GetDatabase") as address:
        denied = stores.lake_catalog(in_s3(tmp_path, address, "s3://bucket/lake", **uri), name)
        assert status(denied) is FAIL
        assert "add 'shop" in said(denied)


def test_a_lake_whose_files_may_not_be_deleted_fails(tmp_path: Path, account: str) -> None:
    bucket = f"lake-{time.monotonic_ns()}"
    client("s3").create_bucket(Bucket=bucket)
    with refusing(account, "DELETE") as address:
        finding = stores.lake_files(in_s3(tmp_path, address, f"s3://{bucket}/lake"))
    assert status(finding) is FAIL
    assert "put, get and delete" in said(finding)


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
