"""An AWS account of one's own: moto's server, which speaks AWS's protocols, and the environment that leads there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
OF_THE_CALLER = ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


@pytest.fixture(scope="module")
def moto_server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path) -> pytest.MonkeyPatch:
    """Nothing of AWS: no keys, and no address but one where nobody answers."""
    for name in (*OF_THE_CALLER, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    return monkeypatch


@pytest.fixture
def account(moto_server: str, no_account: pytest.MonkeyPatch) -> str:
    """The address of an account whose keys this process has."""
    no_account.setenv("AWS_ENDPOINT_URL", moto_server)
    no_account.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    no_account.setenv("AWS_SECRET_ACCESS_KEY", "kept-out-of-messages")
    no_account.setenv("AWS_DEFAULT_REGION", REGION)
    return moto_server


def client(service: str) -> Any:
    """A boto3 client of the account in the environment."""
    import boto3

    return boto3.client(service, region_name=REGION)
