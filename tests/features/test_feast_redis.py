from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from redis_server import PASSWORD, RedisServer, free_port, start_redis
from toys_online import ASKED, SPEC, T0, VIEW, frame, held

from features.redis_client import shown
from features.store import OnlineFeatures, OnlineWriter, open_store, write_online
from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings


def test_a_redis_that_went_away_is_told_and_when_it_is_back_work_goes_on(tmp_path: Path) -> None:
    server = start_redis(tmp_path)
    settings = Settings(home=tmp_path / "home", online_store_url=server.url)
    rows = frame(("a", T0, T0, 1.0, 2.0))
    try:
        writer, features = OnlineWriter(SPEC, settings), OnlineFeatures(SPEC, settings)
        assert writer.write(VIEW, rows) == 1
        asked = pl.DataFrame([("t1", T0, "a", 1.0, True)], schema=ASKED.schema_, orient="row")
        server.stop()
        for use in (lambda: writer.write(VIEW, rows), lambda: features.frame(asked), lambda: list(writer.keys(VIEW))):
            with pytest.raises(UnreachableError, match="PERENNIAL_ONLINE_STORE_URL") as told:
                use()
            assert f"redis://:***@127.0.0.1:{server.port}/2" in str(told.value)
            assert PASSWORD not in str(told.value)
        server.start()
        # Redis was empty after its restart, and had forgotten the script.
        assert writer.write(VIEW, rows) == 1
        assert features.frame(asked)["shop_price_last_1h"].to_list() == [2.0]
    finally:
        server.stop()


def test_a_wrong_password_is_told_without_it(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = Settings(home=tmp_path, online_store_url=f"redis://:hunter2@127.0.0.1:{redis_server.port}/0")
    with pytest.raises(UnreachableError, match="invalid username-password pair") as told:
        write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("url", ["redis://:hun/ter2@127.0.0.1:6379", "localhost:6379,password=hunter2"])
def test_an_address_that_is_none_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    settings = Settings(home=tmp_path, online_store_url=url)
    with pytest.raises(UsageError, match="is no address of Redis") as told:
        write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    assert "hun" not in str(told.value)
    assert told.value.__cause__ is None
    assert "ter2" not in shown(url)


def test_a_redis_that_does_not_let_the_user_write_is_told(tmp_path: Path) -> None:
    server = start_redis(tmp_path)
    try:
        may = ["+@read", "+@connection", "+@scripting"]
        server.client.acl_setuser("reader", enabled=True, passwords=["+letters"], keys=["*"], commands=may)
        url = f"redis://reader:letters@127.0.0.1:{server.port}/2"
        with pytest.raises(StateError, match=r"refused \(.*can't run this command.*\); mend it"):
            write_online(
                SPEC, Settings(home=tmp_path / "home", online_store_url=url), VIEW, frame(("a", T0, T0, 1.0, 2.0))
            )
    finally:
        server.stop()


def fill_memory(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def fail_over(client: redis.Redis) -> Callable[[], Any]:
    """It becomes a replica, of a master that is not there."""
    client.replicaof("127.0.0.1", free_port())
    return lambda: client.replicaof("NO", "ONE")


def lose_the_master(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("replica-serve-stale-data", "no")
    return fail_over(client)


def fail_to_save(client: redis.Redis) -> Callable[[], Any]:
    """A directory is where its file should be; that it cannot be saved is known after the first try."""
    in_the_way = Path(client.config_get("dir")["dir"]) / client.config_get("dbfilename")["dbfilename"]
    in_the_way.mkdir()
    client.config_set("save", "900 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.01)

    def mend() -> None:
        in_the_way.rmdir()
        client.save()

    return mend


def lose_the_replicas(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (fail_to_save, "MISCONF"),
        (lose_the_replicas, "NOREPLICAS"),
        (fill_memory, "used memory > 'maxmemory'"),
        (fail_over, "can't write against a read only replica"),
        (lose_the_master, "Link with MASTER is down"),
    ],
)
def test_what_redis_cannot_do_just_now_is_told_as_what_can_be_waited_for(
    tmp_path: Path, trouble: Callable[[redis.Redis], Callable[[], Any]], said: str
) -> None:
    server = start_redis(tmp_path, "--maxmemory-policy", "noeviction")
    try:
        writer = OnlineWriter(SPEC, Settings(home=tmp_path / "home", online_store_url=server.url))
        writer.write(VIEW, frame(("a", T0, T0, 1.0, 2.0)))
        mend = trouble(server.client)
        try:
            with pytest.raises(UnreachableError, match="PERENNIAL_ONLINE_STORE_URL") as told:
                writer.write(VIEW, frame(("b", T0, T0, 3.0, 4.0)))
        finally:
            mend()
        assert said in str(told.value)
        assert str(told.value).isprintable()
        assert f"redis://:***@127.0.0.1:{server.port}/2" in str(told.value)
        writer.write(VIEW, frame(("b", T0, T0, 3.0, 4.0)))
        assert held(writer) == {"a": (T0, T0, 1.0, 2.0), "b": (T0, T0, 3.0, 4.0)}
    finally:
        server.stop()


@pytest.fixture
def tls_redis(tmp_path: Path) -> Iterator[RedisServer]:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate, *names]
    subprocess.run(["openssl", *made], check=True, capture_output=True)
    tls_port = free_port()
    server = start_redis(
        tmp_path,
        *(
            "--tls-port",
            str(tls_port),
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            key,
            "--tls-auth-clients",
            "no",
        ),
        *("--user", "feature_writer", "on", ">s3cret", "~*", "+@all"),
    )
    server.tls_port = tls_port
    yield server
    server.stop()


def test_a_user_a_database_and_tls_are_taken_from_the_address(tmp_path: Path, tls_redis: RedisServer) -> None:
    where = f"rediss://feature_writer:s3cret@127.0.0.1:{tls_redis.tls_port}/3"
    rows = frame(("a", T0, T0, 1.0, 2.0))
    with pytest.raises(UnreachableError, match="certificate") as told:
        write_online(SPEC, Settings(home=tmp_path, online_store_url=where), VIEW, rows)
    assert f"rediss://feature_writer:***@127.0.0.1:{tls_redis.tls_port}/3" in str(told.value)
    trusted = f"{where}?ssl_ca_certs={tmp_path / 'certificate.pem'}"
    assert write_online(SPEC, Settings(home=tmp_path, online_store_url=trusted), VIEW, rows) == 1
    keyspace = tls_redis.client.info("keyspace")
    assert {name: told["keys"] for name, told in keyspace.items()} == {"db3": 1}
    asked = pl.DataFrame([("t1", T0, "a", 1.0, True)], schema=ASKED.schema_, orient="row")
    with pytest.raises(UnreachableError, match="certificate"):
        OnlineFeatures(SPEC, Settings(home=tmp_path, online_store_url=where)).frame(asked)
    served = OnlineFeatures(SPEC, Settings(home=tmp_path, online_store_url=trusted)).frame(asked)
    assert served["shop_price_last_1h"].to_list() == [2.0]


def test_no_password_is_kept_by_feast(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = Settings(home=tmp_path, online_store_url=redis_server.url)
    write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    kept = b"".join(path.read_bytes() for path in settings.feast_dir.rglob("*") if path.is_file())
    assert b"shop_prices" in kept
    secrets = [PASSWORD, redis_server.url.split("@")[0].split(":", 2)[2]]
    assert not [secret for secret in secrets if secret.encode() in kept]
    assert not [secret for secret in secrets if secret in repr(open_store(SPEC, settings).config)]
