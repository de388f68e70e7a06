"""`perennial doctor` and Kafka: a real broker, and what may be in its place."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from findings_seen import FAIL, INCONCLUSIVE, PASS, said, status, status_of

from features.broker import ensure_topics
from perennial.doctor import servers, stream
from perennial.doctor.findings import run_checks
from perennial.settings import Settings

if TYPE_CHECKING:
    from conftest import Broker


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
    settings = kafka_settings(tmp_path, f"127.0.0.1:{tls_port}")
    for finding in (stream.kafka(settings), stream.topics(settings, ["shop.sold.v1"])):
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
