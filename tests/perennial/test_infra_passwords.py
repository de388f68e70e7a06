"""Passwords that change while a program runs: a real PostgreSQL and Redis, and moto's Secrets Manager."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import redis
import sqlalchemy as sa
from aws_account import account as account
from aws_account import client
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account
from postgres import postgres as postgres
from psycopg import sql
from pydantic import SecretStr

sys.path.append(str(Path(__file__).parents[1] / "features"))
from redis_server import PASSWORD, start_redis
from toys_online import SPEC, VIEW

from features.redis_rows import RedisRows
from perennial.aws_secrets import FRESH_S, KEPT_S, Secret
from perennial.database_engines import SECRET_SETTING, open_engine
from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings
from rollout.ledger import Ledger

NAMES = ("username", "password")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def new_secret(**values: object) -> str:
    name = f"test/{time.monotonic_ns()}"
    return client("secretsmanager").create_secret(Name=name, SecretString=json.dumps(values))["ARN"]


def change(arn: str, **values: object) -> None:
    client("secretsmanager").put_secret_value(SecretId=arn, SecretString=json.dumps(values))


@dataclass(frozen=True)
class Guarded:
    """A PostgreSQL that asks one user for a password, which is "first" in the beginning."""

    url: str
    user: str
    owner: psycopg.Connection

    def set_password(self, password: str) -> None:
        self.owner.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(self.user), sql.Literal(password))
        )


@pytest.fixture
def guarded(postgres: str) -> Iterator[Guarded]:
    folder = sa.make_url(postgres).query["host"]
    hba = Path(str(folder)) / "data" / "pg_hba.conf"
    before = hba.read_text()
    with psycopg.connect(f"host={folder} user=perennial dbname=postgres", autocommit=True) as owner:
        user = f"app_{time.monotonic_ns()}"
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'first' SUPERUSER").format(sql.Identifier(user)))
        hba.write_text(f"local all {user} scram-sha-256\n{before}")
        owner.execute("SELECT pg_reload_conf()")
        try:
            yield Guarded(f"postgresql+psycopg:///postgres?host={folder}", user, owner)
        finally:
            hba.write_text(before)
            owner.execute("SELECT pg_reload_conf()")


def who(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(sa.text("SELECT current_user")).scalar_one())


def test_a_password_that_changes_is_read_anew_when_it_is_refused(account: str, guarded: Guarded) -> None:
    clock, arn = Clock(), new_secret(username=guarded.user, password="first")
    engine = open_engine(guarded.url, arn, Secret(arn, SECRET_SETTING, NAMES, clock))
    assert who(engine) == guarded.user
    guarded.set_password("second")
    change(arn, username=guarded.user, password="second")
    with engine.connect() as kept:  # what is open stays open, whatever the password is now
        assert kept.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()
    clock.now += FRESH_S
    assert who(engine) == guarded.user
    engine.dispose()


def test_the_old_password_in_the_secret_is_refused_and_not_asked_for_again_and_again(
    account: str, guarded: Guarded
) -> None:
    clock, arn = Clock(), new_secret(username=guarded.user, password="first")
    secret = Secret(arn, SECRET_SETTING, NAMES, clock)
    engine = open_engine(guarded.url, arn, secret)
    guarded.set_password("second")  # as between the two steps of a rotation: the secret still says the first
    with pytest.raises(sa.exc.OperationalError, match="password authentication failed"):
        who(engine)
    change(arn, username=guarded.user, password="second")
    with pytest.raises(sa.exc.OperationalError):  # within FRESH_S of the last reading nobody asks
        who(engine)
    clock.now += FRESH_S
    assert who(engine) == guarded.user
    engine.dispose()


def test_the_ledger_goes_on_after_a_rotation(account: str, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = new_secret(username=guarded.user, password="first")
    monkeypatch.setattr("perennial.database_engines.FRESH_S", 0.0)
    ledger = Ledger(guarded.url, arn)
    assert ledger.state("nobody") is None
    guarded.set_password("second")
    change(arn, username=guarded.user, password="second")
    ledger.close()  # every pooled connection is gone, as after a restart of the database
    assert ledger.state("nobody") is None
    ledger.close()


def test_a_password_in_the_address_is_taken_and_no_secret_read(account: str, guarded: Guarded) -> None:
    own = sa.make_url(guarded.url).set(username=guarded.user, password="first").render_as_string(hide_password=False)
    engine = open_engine(own, "arn:aws:secretsmanager:us-east-1:123456789012:secret:gone")
    assert who(engine) == guarded.user
    engine.dispose()


def test_a_secret_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PERENNIAL_DATABASE_URL is a file"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "arn:aws:x:y:z:w:v")


def test_a_secret_is_kept_for_some_minutes(account: str) -> None:
    clock, arn = Clock(), new_secret(username="a", password="old")
    secret = Secret(arn, "SETTING", NAMES, clock)
    assert secret.read()["password"] == "old"
    change(arn, username="a", password="new")
    clock.now += KEPT_S - 1
    assert secret.read()["password"] == "old"
    clock.now += 1
    assert secret.read()["password"] == "new"


def test_while_secrets_manager_does_not_answer_the_last_password_stands(
    account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, arn = Clock(), new_secret(username="a", password="old")
    secret = Secret(arn, "SETTING", NAMES, clock)
    assert secret.read()["password"] == "old"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    clock.now += KEPT_S
    assert secret.read()["password"] == "old"
    monkeypatch.setenv("AWS_ENDPOINT_URL", account)
    change(arn, username="a", password="new")
    clock.now += FRESH_S - 1
    assert secret.read()["password"] == "old"  # nobody waits again so soon
    clock.now += 1
    assert secret.read()["password"] == "new"


@pytest.mark.parametrize(("status", "code"), [(400, "ThrottlingException"), (503, "ServiceUnavailable")])
def test_an_answer_that_asks_to_come_again_is_an_outage_and_no_refusal(
    account: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told = json.dumps({"__type": code, "message": "later"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            """Quietly."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UnreachableError, match=code):
            Secret("arn:aws:secretsmanager:us-east-1:123456789012:secret:s", "SETTING", NAMES).read()
        server.shutdown()


def test_a_secret_that_was_taken_away_is_no_outage(account: str) -> None:
    clock, arn = Clock(), new_secret(username="a", password="old")
    secret = Secret(arn, "SETTING", NAMES, clock)
    secret.read()
    client("secretsmanager").delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    clock.now += KEPT_S
    with pytest.raises(StateError, match="ResourceNotFoundException"):
        secret.read()


@pytest.mark.parametrize("told", ["not json: hunter2", '["hunter2"]', '{"password": "hunter2"}', "7"])
def test_a_secret_of_something_else_is_told_without_repeating_it(account: str, told: str) -> None:
    name = f"test/{time.monotonic_ns()}"
    arn = client("secretsmanager").create_secret(Name=name, SecretString=told)["ARN"]
    with pytest.raises(StateError, match="no JSON object with username and password; see SETTING") as error:
        Secret(arn, "SETTING", NAMES).read()
    chain = [error.value]
    while chain[-1].__cause__ or (chain[-1].__context__ and not chain[-1].__suppress_context__):
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert "hunter2" not in "".join(map(str, chain))


def test_a_secret_that_is_not_there_is_told_with_the_setting(account: str) -> None:
    with pytest.raises(StateError, match=r"ResourceNotFoundException.*see SETTING"):
        Secret("arn:aws:secretsmanager:us-east-1:123456789012:secret:nobodys", "SETTING", NAMES).read()


def test_without_credentials_it_is_told_so(no_account: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match="NoCredentialsError"):
        Secret("arn:aws:secretsmanager:us-east-1:123456789012:secret:s", "SETTING", NAMES).read()


def test_redis_takes_its_password_from_the_secret(account: str, tmp_path: Path, free_port: int) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    from features.redis_client import ask_redis

    command = ["redis-server", "--port", str(free_port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "p@ss/1"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert any("Ready to accept connections" in line for line in server.stdout)
        url = SecretStr(f"redis://127.0.0.1:{free_port}/0")
        version, role = ask_redis(url, new_secret(host="h", port=6379, password="p@ss/1"))
        assert (version[0].isdigit(), role) == (True, "master")
        with pytest.raises(UnreachableError, match=r"(?i)password|auth"):
            ask_redis(url, new_secret(password="wrong"))
        with pytest.raises((UnreachableError, StateError), match=r"(?i)auth"):
            ask_redis(url)
    finally:
        server.terminate()
        server.wait(20)


def test_the_reader_of_features_goes_on_after_a_rotation(
    account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.redis_client.PASSWORD_KEPT_S", 0.0)
    server = start_redis(tmp_path)
    try:
        arn = new_secret(password=PASSWORD)
        where = f"redis://127.0.0.1:{server.port}/2"
        rows = RedisRows(SPEC, Settings(home=tmp_path, online_store_url=where, online_store_secret_arn=arn))
        assert rows.read([(VIEW, ["a"])]) == [{}]
        server.client.config_set("requirepass", "second")
        change(arn, password="second")
        assert rows.read([(VIEW, ["a"])]) == [{}]  # the connection that is there
        redis.Redis(port=server.port, password="second").client_kill_filter(_type="normal", skipme=True)
        assert rows.read([(VIEW, ["a"])]) == [{}]
        redis.Redis(port=server.port, password="second").config_set("requirepass", "third")
        redis.Redis(port=server.port, password="third").client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(UnreachableError, match="PERENNIAL_ONLINE_STORE_URL"):
            rows.read([(VIEW, ["a"])])
    finally:
        server.stop()


def test_a_loop_goes_on_while_the_password_is_asked_for(
    no_account: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from features.redis_client import SecretPassword

    no_account.setenv("AWS_ACCESS_KEY_ID", "key")
    no_account.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    secret = Secret("arn:aws:secretsmanager:us-east-1:123456789012:secret:s", "SETTING", ("password",))

    async def ask(mute: socket.socket) -> bool:
        asking = asyncio.create_task(SecretPassword(secret).get_credentials_async())
        while not (secret._lock.locked() or asking.done()):
            await asyncio.sleep(0.001)
        in_between = not asking.done()  # the loop came back here, and nobody has answered
        mute.close()
        with pytest.raises(UnreachableError):
            await asking
        return in_between

    mute = socket.create_server(("127.0.0.1", 0))  # a Secrets Manager that takes the call and says nothing
    no_account.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
    assert asyncio.run(ask(mute))
    assert "override it" not in caplog.text


def test_feast_is_given_the_secret_and_not_the_password(tmp_path: Path) -> None:
    from features.store import repo_config
    from perennial.template.pipeline import PIPELINE

    given = Settings(home=tmp_path, online_store_url="rediss://h:1/0", online_store_secret_arn="arn:aws:s")
    assert repo_config(PIPELINE, given).online_store.secret_arn == "arn:aws:s"
