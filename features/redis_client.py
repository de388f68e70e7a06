"""Redis: how it is opened, with which password, and what its errors mean. No Feast: the scoring service has none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import SecretStr
from redis import asyncio as redis_asyncio
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from perennial.aws_secrets import Secret
from perennial.errors import StateError, UnreachableError, UsageError

PASSWORD_KEPT_S = 60.0
SECRET_SETTING = "PERENNIAL_ONLINE_STORE_SECRET_ARN"
CONNECT_S = 3.0
ANSWER_S = 10.0
# What Redis answers during a failover or while its memory is full: later it does the same gladly. One that still loads its
# data is a ConnectionError to redis-py.
NOT_NOW = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
# The same of a disk that takes no snapshots and of replicas that are away; redis-py has no classes for them.
NOT_NOW_CODES = ("MISCONF ", "NOREPLICAS ")


def ask_redis(url: SecretStr, secret_arn: str = "") -> tuple[str, str]:
    """The version of the Redis at an address, and its role: master, or slave, which takes no rows.

    Raises:
        UsageError: the address is none of Redis.
        UnreachableError: it does not answer, or takes no such password.
        StateError: it refuses.
    """
    with redis_answers(url):
        client = open_client(url, secret_arn)
        try:
            client.ping()
            return str(client.info("server")["redis_version"]), str(client.info("replication")["role"])
        finally:
            client.close()


def shown(url: str) -> str:
    """The address without its password."""
    try:
        parts = urlsplit(url)
        where = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    except ValueError:
        return "(no address of Redis)"
    if parts.scheme not in ("redis", "rediss"):
        return "(no address of Redis)"
    return f"{parts.scheme}://{f'{parts.username}:***@' if parts.password else ''}{where}{parts.path}"


class SecretPassword(redis.CredentialProvider):
    """The password of a secret of AWS, asked for at each new connection."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def get_credentials(self) -> tuple[str]:
        """The password, as it is now."""
        return (self._secret.read(PASSWORD_KEPT_S)["password"],)

    async def get_credentials_async(self) -> tuple[str]:
        """The same, without holding up the loop while Secrets Manager is asked."""
        return await asyncio.to_thread(self.get_credentials)


def open_client(url: SecretStr, secret_arn: str = "") -> Any:
    """A client that connects when it is first used.

    Raises:
        UsageError: the address is none of Redis.
    """
    return _open(redis.Redis, Retry, url, secret_arn)


def open_async_client(url: SecretStr, secret_arn: str) -> Any:
    """The same, off the event loop.

    Raises:
        UsageError: the address is none of Redis.
    """
    return _open(redis_asyncio.Redis, redis_asyncio.retry.Retry, url, secret_arn)


def _open(client: Any, retry: Any, url: SecretStr, secret_arn: str) -> Any:
    asked = bool(secret_arn) and not urlsplit(url.get_secret_value()).password
    credentials = SecretPassword(Secret(secret_arn, SECRET_SETTING, ("password",))) if asked else None
    try:
        return client.from_url(
            url.get_secret_value(),
            credential_provider=credentials,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            # Once more: after a restart of Redis, what the pool holds are dead connections.
            retry=retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
        )
    except ValueError:
        # Its text is left out: it may hold a piece of the password.
        raise UsageError(
            "PERENNIAL_ONLINE_STORE_URL is no address of Redis; write redis://user:password@host:6379/0, or rediss:// "
            "for TLS, with %-codes for special characters such as / and @ in the password"
        ) from None


@contextmanager
def redis_answers(url: SecretStr) -> Iterator[None]:
    """Around what asks Redis: its errors become ours.

    Raises:
        UnreachableError: it does not answer, or cannot do it now.
        StateError: it refuses.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnreachableError(
            f"the online store {shown(url.get_secret_value())} does not answer ({error}); start it, "
            "or see PERENNIAL_ONLINE_STORE_URL"
        ) from error
    except redis.RedisError as error:
        where, cause = shown(url.get_secret_value()), _cause(error)
        if isinstance(error, NOT_NOW) or cause.startswith(NOT_NOW_CODES):
            raise UnreachableError(
                f"the online store {where} cannot do it now ({cause}); give it memory, its disk, its master or its "
                "replicas back, or see PERENNIAL_ONLINE_STORE_URL"
            ) from error
        raise StateError(
            f"the online store {where} refused ({cause}); mend it, then run again, or see PERENNIAL_ONLINE_STORE_URL"
        ) from error


def _cause(error: redis.RedisError) -> str:
    """What Redis said, without the command that redis-py tells before: it holds bytes of keys and values."""
    return str(error).rpartition(" of pipeline caused error: ")[2]
