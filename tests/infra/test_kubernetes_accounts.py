"""The job `accounts`, with a real PostgreSQL that takes TLS and passwords only, and moto's Secrets Manager."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer
from sqlalchemy.ext.asyncio import create_async_engine
from tls import certificate

from perennial.cluster_accounts import _run
from perennial.errors import StateError, UnreachableError, UsageError
from rollout.ledger import Ledger

pytestmark = pytest.mark.infra

TOKEN = "token-of-the-pod"
OWNER, FIRST_PASSWORD = "perennial", "first:of@RDS/%"


@dataclass
class Database:
    """PostgreSQL as RDS gives it: its user may make users and databases and is no superuser."""

    port: int
    log: Path

    def owner(self, password: str, database: str = "perennial") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=OWNER, password=password, dbname=database, autocommit=True
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def database(tls: tuple[Path, Path]) -> Iterator[Database]:
    initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("PostgreSQL is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        names = [shutil.copy(file, folder) for file in tls]
        Path(names[1]).chmod(0o600)
        for name in [folder, *names] if user else []:
            shutil.chown(name, user)

        def run(*command: str) -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)

        data = f"{folder}/data"
        run(initdb, "-D", data, "-U", "rds", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync")
        hba = Path(data) / "pg_hba.conf"
        hba.write_text("local all rds trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
        options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += f" -c log_statement=all -c ssl=on -c ssl_cert_file={names[0]} -c ssl_key_file={names[1]}"
        run(pg_ctl, "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            with psycopg.connect(host=folder, port=port, user="rds", dbname="postgres", autocommit=True) as first:
                first.execute(f"CREATE ROLE {OWNER} LOGIN CREATEDB CREATEROLE PASSWORD '{FIRST_PASSWORD}'")
                first.execute(f"CREATE DATABASE perennial OWNER {OWNER}")
            yield Database(port, Path(folder, "log"))
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "stop")


@dataclass
class Api:
    """The part of the Kubernetes API that the job uses: GET and merge-PATCH of three secrets, for who has the token."""

    port: int
    secrets: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"settings": {}, "mlflow-database": {}, "prefect-database": {}}
    )

    def value(self, secret: str, key: str) -> str:
        return base64.b64decode(self.secrets[secret][key]).decode()


@pytest.fixture
def api(tls: tuple[Path, Path]) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_PATCH(self) -> None:
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, patch: dict[str, Any] | None) -> None:
            folder, _, name = self.path.rpartition("/")
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
            known = folder == "/api/v1/namespaces/perennial/secrets" and name in made.secrets
            if allowed and known and patch:
                made.secrets[name].update(patch["data"])
            body = json.dumps({"data": made.secrets[name]} if allowed and known else {}).encode()
            self.send_response(200 if allowed and known else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made = Api(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()


@dataclass
class Job:
    """The job in its pod."""

    environment: dict[str, str]
    folder: Path
    secrets: Any

    def run(self, **changes: str) -> None:
        _run({**self.environment, **changes}, self.folder)

    def rotate(self, password: str) -> None:
        """What RDS does to the secret."""
        told = json.dumps({"username": OWNER, "password": password})
        self.secrets.put_secret_value(SecretId=self.environment["DATABASE_SECRET_ARN"], SecretString=told)


@pytest.fixture
def job(
    database: Database, api: Api, tls: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Job]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    aws.start()
    host, port = aws.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    secrets = boto3.client("secretsmanager")
    made = {
        "DATABASE_SECRET_ARN": json.dumps({"username": OWNER, "password": FIRST_PASSWORD}),
        "ONLINE_STORE_SECRET_ARN": json.dumps({"host": "redis.example", "port": 6379, "password": "a/b"}),
        "ALERT_URLS_SECRET_ARN": None,
    }
    arns = {
        name: secrets.create_secret(Name=f"{name}-{uuid.uuid4().hex}", **({"SecretString": value} if value else {}))[
            "ARN"
        ]
        for name, value in made.items()
    }
    shutil.copy(tls[0], tmp_path / "ca.crt")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "namespace").write_text("perennial")
    where = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(database.port), "DATABASE_NAME": "perennial"}
    where |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
    yield Job({**where, **arns}, tmp_path, secrets)
    aws.stop()


def test_no_password_is_in_the_databases_log(job: Job, api: Api, database: Database) -> None:
    job.run()
    told = database.log.read_text()
    assert "ALTER ROLE" in told
    for secret, key in (
        ("settings", "PERENNIAL_DATABASE_URL"),
        ("mlflow-database", "url"),
        ("prefect-database", "url"),
    ):
        assert str(sa.make_url(api.value(secret, key)).password) not in told


def ask(url: str, query: str = "SELECT current_user || ' in ' || current_database()") -> Any:
    """One value, by a connection of its own."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        result = connection.execute(sa.text(query))
        return result.scalar() if result.returns_rows else None


def ask_as_prefect(url: str, query: str) -> Any:
    async def go() -> Any:
        engine = create_async_engine(url, poolclass=sa.pool.NullPool)
        async with engine.begin() as connection:
            result = await connection.execute(sa.text(query))
            return result.scalar() if result.returns_rows else None

    return asyncio.run(go())


def test_each_program_gets_a_user_who_owns_its_database_and_enters_no_other(job: Job, api: Api) -> None:
    job.run()
    ledger = Ledger(api.value("settings", "PERENNIAL_DATABASE_URL"))
    assert ledger.history("flights") == []  # it has made its tables
    ledger.close()
    assert ask(api.value("settings", "PERENNIAL_DATABASE_URL")) == "ledger in perennial"
    mlflow, prefect = api.value("mlflow-database", "url"), api.value("prefect-database", "url")
    ask(mlflow, "CREATE TABLE runs (id int)")
    # Prefect's first migration needs it.
    ask_as_prefect(prefect, "CREATE EXTENSION pg_trgm")
    assert ask_as_prefect(prefect, "SELECT current_user || ' in ' || current_database()") == "prefect in prefect"
    assert ask_as_prefect(prefect, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
    for foreign in ("prefect", "perennial"):
        with pytest.raises(sa.exc.OperationalError, match="permission denied for database"):
            ask(mlflow.replace("/mlflow?", f"/{foreign}?"))


def test_a_changed_password_of_rds_is_nobodys_business_but_the_jobs(job: Job, api: Api, database: Database) -> None:
    job.run()
    before = json.dumps(api.secrets)
    running = sa.create_engine(api.value("mlflow-database", "url"))
    with running.connect() as connection:
        with database.owner(FIRST_PASSWORD) as owner:
            owner.execute(f"ALTER ROLE {OWNER} PASSWORD 'second'")
        job.rotate("second")
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    running.dispose()
    assert ask(api.value("mlflow-database", "url")) == "mlflow in mlflow"  # a new connection with the old URL
    job.run()
    assert json.dumps(api.secrets) == before


def test_a_job_that_was_killed_before_it_set_a_password_sets_it_the_next_time(job: Job, api: Api) -> None:
    kept = f"postgresql+psycopg://mlflow:of-the-killed-run@127.0.0.1:{job.environment['DATABASE_PORT']}/mlflow?sslmode=require"
    api.secrets["mlflow-database"]["url"] = base64.b64encode(kept.encode()).decode()
    job.run()
    assert api.value("mlflow-database", "url") == kept
    assert ask(kept) == "mlflow in mlflow"


def test_the_other_settings_are_what_secrets_manager_holds_at_the_time(job: Job, api: Api) -> None:
    job.run()
    assert api.value("settings", "PERENNIAL_ONLINE_STORE_URL") == "rediss://:a%2Fb@redis.example:6379/0"
    assert api.value("settings", "PERENNIAL_ALERT_URLS") == ""  # nobody has filled it
    job.secrets.put_secret_value(SecretId=job.environment["ALERT_URLS_SECRET_ARN"], SecretString="slack://a/b/c")
    job.run()
    assert api.value("settings", "PERENNIAL_ALERT_URLS") == "slack://a/b/c"


def test_what_is_wrong_is_told_in_a_sentence_and_without_a_password(job: Job, api: Api) -> None:
    def refused(kind: type[Exception], **changes: str) -> str:
        with pytest.raises(kind) as told:
            job.run(**changes)
        return str(told.value)

    assert "DATABASE_HOST is not set" in refused(UsageError, DATABASE_HOST="")
    assert "ResourceNotFoundException" in refused(
        StateError, DATABASE_SECRET_ARN="arn:aws:secretsmanager:us-east-1:1:secret:x"
    )
    assert "'db-1a2b3c' is no ARN" in refused(UsageError, DATABASE_SECRET_ARN="db-1a2b3c")
    job.rotate("not-yet-in-the-database")
    told = refused(UnreachableError)
    assert "password authentication failed" in told
    assert "not-yet-in-the-database" not in told
    api.secrets.pop("settings")
    assert "refused PATCH of the secret 'settings' with 403" in refused(StateError)
