"""Feast's Redis online store, guarded: a row goes in only if it is not older than what is there.

The rules are those of features/feast_online.py; Redis takes a fifth of a second to import, so it is apart. Feast's own
store compares before it writes, which two writers can do at once, and refuses equal event times, which corrections of
late events have. Here a script in Redis does both, one key at a time. The layout is Feast's, with one more field a view:
when its row was created.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import polars as pl
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr
from redis import asyncio as redis_asyncio
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from features.feast_online import (
    EPOCH,
    KEY_VERSION,
    FeastAnswer,
    FeastRow,
    entries_of,
    key_bytes,
    micros,
    numbers_frame,
    row_places,
)
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from features.light_feast import Value, deserialize_entity_key, serialize_entity_key, serialize_entity_key_prefix
from perennial.aws_secrets import Secret
from perennial.errors import StateError, UnreachableError, UsageError

# isort: split
# After light_feast: whatever imports Feast first decides how.
from feast.infra.online_stores.helpers import _mmh3 as field_of
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

PASSWORD_KEPT_S = 60.0
SECRET_SETTING = "PERENNIAL_ONLINE_STORE_SECRET_ARN"
CONNECT_S = 3.0
ANSWER_S = 10.0
KEYS_A_PIPELINE = 2_000
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
# Compares and writes one key. Both sides of a comparison are Timestamps as Protobuf writes them: seconds and nanoseconds,
# each a varint, a number that is 0 left out. Numbers of Lua are doubles, too short for one number of microseconds.
WRITE_NEWEST = """
local function moment(timestamp)
    local parts, at = {[8] = 0, [16] = 0}, 1
    while at <= #timestamp do
        local part, value, scale, byte = timestamp:byte(at), 0, 1, nil
        local first = at + 1
        repeat
            at = at + 1
            byte = timestamp:byte(at)
            value = value + (byte % 128) * scale
            scale = scale * 128
        until byte < 128
        if at - first == 9 then  -- ten bytes: below zero, as its complement to two
            value = -1
            scale = 1
            for i = first, at - 1 do
                value = value - (127 - timestamp:byte(i) % 128) * scale
                scale = scale * 128
            end
        end
        parts[part] = value
        at = at + 1
    end
    return parts[8], parts[16]
end
local function older(one, other)
    if one == other then return false, true end
    local seconds, nanos = moment(one)
    local other_seconds, other_nanos = moment(other)
    if seconds ~= other_seconds then return seconds < other_seconds, false end
    return nanos < other_nanos, nanos == other_nanos
end
local held = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[2])
if held[1] then
    local before, same = older(ARGV[3], held[1])
    if before or (same and older(ARGV[4], held[2] or '')) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], ARGV[2], ARGV[4], unpack(ARGV, 5))
return 1
"""

# Takes one key's row out if it is the one of these times.
REMOVE = """
local held = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[2])
if held[1] ~= ARGV[3] or (held[2] or '') ~= ARGV[4] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1], ARGV[2], unpack(ARGV, 5))
return 1
"""


class NewestRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's configuration of the store below; Feast looks for this name."""

    type: Literal["features.feast_redis.NewestRedisOnlineStore"] = "features.feast_redis.NewestRedisOnlineStore"
    url: SecretStr
    """redis:// or rediss:// address; it may hold a password, so it does not show itself."""
    secret_arn: str = ""
    """Secret of AWS that has the password, where the address has none."""


class NewestRedisOnlineStore(RedisOnlineStore):
    """Feast's Redis store, never with an older row over a newer one, also under several writers."""

    _client: Any = None
    _client_async: Any = None

    def online_write_batch(
        self, config: Any, table: Any, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """Feast's way to write, with the same guard."""
        self._put(
            config,
            table,
            (
                (
                    serialize_entity_key(key, KEY_VERSION),
                    micros(at),
                    micros(created),
                    [part for n, v in values.items() for part in (_field(table, n), v.SerializeToString())],
                )
                for key, values, at, created in data
            ),
        )
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self, config: Any, table: Any, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """The same, off the event loop."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def write_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """See `features.feast_online.NewestOnlineStore`."""
        columns: list[Iterable[bytes]] = []
        for feature in table.features:
            columns.append([_field(table, feature.name)] * rows.height)
            columns.append(entries_of(rows.get_column(feature.name), lambda value: value))
        return self._put(
            config,
            table,
            zip(
                key_bytes(table.join_keys[0], rows.get_column(table.join_keys[0])),
                rows.get_column(EVENT_TIMESTAMP).cast(pl.Int64).to_list(),
                rows.get_column(CREATED_TIMESTAMP).cast(pl.Int64).fill_null(0).to_list(),
                zip(*columns, strict=True),
                strict=True,
            ),
        )

    def read_numbers(self, config: Any, table: Any, keys: Sequence[str]) -> pl.DataFrame:
        """See `features.feast_online.NewestOnlineStore`."""
        names = [f.name for f in table.features]
        fields: list[str | bytes] = [*_times(table), *(_field(table, name) for name in names)]
        found: list[tuple[str, int, int, Any]] = []
        for start in range(0, len(keys), KEYS_A_PIPELINE):
            some = keys[start : start + KEYS_A_PIPELINE]
            project = config.project.encode()
            answers = self._read_hash_fields(
                config, [(key + project, fields) for key in key_bytes(table.join_keys[0], some)]
            )
            for key, (at, created, *values) in zip(some, answers, strict=True):
                if at is not None:
                    held = {n: Value.FromString(v) for n, v in zip(names, values, strict=True) if v is not None}
                    found.append((key, _micros_of(at), _micros_of(created or b""), held))
        return numbers_frame(table, found)

    def remove_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """See `features.feast_online.NewestOnlineStore`."""
        names = [_field(table, feature.name) for feature in table.features]
        places = ((key, at, created, names) for key, at, created in row_places(table, rows))
        return self._for_each(config, table, places, REMOVE)

    def keys(self, config: Any, table: Any) -> Iterator[list[str]]:
        """See `features.feast_online.NewestOnlineStore`; Redis may tell a key twice."""
        join_key, project, at = table.join_keys[0], config.project.encode(), _times(table)[0]
        prefix = serialize_entity_key_prefix([join_key], KEY_VERSION)
        client, cursor = self._get_client(config.online_store), 0
        while True:
            with _redis_answers(config.online_store):
                # Of all of Redis, which may hold other projects and other things.
                cursor, some = client.scan(cursor, match=_literal(prefix) + b"*" + _literal(project), count=1_000)
            own = [key[: -len(project)] for key in some if _is_key(key, prefix, project)]
            held = self._read_hash_fields(config, [(key + project, [at]) for key in own]) if own else []
            batch = [
                deserialize_entity_key(key, KEY_VERSION).entity_values[0].string_val
                for key, (there,) in zip(own, held, strict=True)
                if there is not None
            ]
            if batch:
                yield batch
            if not cursor:
                return

    def update(self, config: Any, *tables: Any, **named: Any) -> None:
        """Feast's own: nothing to make; removed views are deleted."""
        with _redis_answers(config.online_store):
            super().update(config, *tables, **named)

    def _put(self, config: Any, table: Any, rows: Iterable[tuple[bytes, int, int, Iterable[bytes]]]) -> int:
        return self._for_each(config, table, rows, WRITE_NEWEST)

    def _for_each(
        self, config: Any, table: Any, rows: Iterable[tuple[bytes, int, int, Iterable[bytes]]], code: str
    ) -> int:
        """Run a script on each row; how often it did something."""
        client = self._get_client(config.online_store)
        script, times = client.register_script(code), _times(table)
        project = config.project.encode()
        done = 0
        for some in _in_parts(rows):
            with _redis_answers(config.online_store), client.pipeline(transaction=False) as pipe:
                for key, at, created, values in some:
                    script(
                        keys=[key + project], args=[*times, _timestamp(at), _timestamp(created), *values], client=pipe
                    )
                done += sum(pipe.execute())
        return done

    def _read_hash_fields(
        self, config: Any, commands: list[tuple[bytes, list[str | bytes]]]
    ) -> list[list[bytes | None]]:
        """The one way in which values are read, by Feast too."""
        with _redis_answers(config.online_store):
            found: list[list[bytes | None]] = super()._read_hash_fields(config, commands)
            return found

    def _get_features_for_entity(
        self, values: Sequence[bytes | None], feature_view: str, requested_features: list[str]
    ) -> FeastAnswer:
        found = dict(zip(requested_features, values, strict=True))
        at = found.pop(f"_ts:{feature_view}")
        if at is None:
            return None, None
        held = {name: Value.FromString(value or b"") for name, value in found.items()}
        return EPOCH + timedelta(microseconds=_micros_of(at)), held

    def _get_client(self, online_store_config: Any) -> Any:
        if self._client is None:
            self._client = open_client(redis, online_store_config.url, online_store_config.secret_arn)
        return self._client

    async def _get_client_async(self, online_store_config: Any) -> Any:
        if self._client_async is None:
            self._client_async = open_client(redis_asyncio, online_store_config.url, online_store_config.secret_arn)
        return self._client_async


def ask_redis(url: SecretStr, secret_arn: str = "") -> tuple[str, str]:
    """The version of the Redis at an address, and its role: master, or slave, which takes no rows.

    Raises:
        UsageError: the address is none of Redis.
        UnreachableError: it does not answer, or takes no such password.
        StateError: it refuses.
    """
    with _redis_answers(NewestRedisOnlineStoreConfig(url=url, secret_arn=secret_arn)):
        client = open_client(redis, url, secret_arn)
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


def open_client(library: Any, url: SecretStr, secret_arn: str = "") -> Any:
    """A client of `redis` or `redis.asyncio` that connects when it is first used.

    Raises:
        UsageError: the address is none of Redis.
    """
    asked = bool(secret_arn) and not urlsplit(url.get_secret_value()).password
    credentials = SecretPassword(Secret(secret_arn, SECRET_SETTING, ("password",))) if asked else None
    try:
        return library.Redis.from_url(
            url.get_secret_value(),
            credential_provider=credentials,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            # Once more: after a restart of Redis, what the pool holds are dead connections.
            retry=(Retry if library is redis else library.retry.Retry)(ExponentialBackoff(cap=0.2, base=0.05), 1),
        )
    except ValueError:
        # Its text is left out: it may hold a piece of the password.
        raise UsageError(
            "PERENNIAL_ONLINE_STORE_URL is no address of Redis; write redis://user:password@host:6379/0, or rediss:// "
            "for TLS, with %-codes for special characters such as / and @ in the password"
        ) from None


@contextmanager
def _redis_answers(config: Any) -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnreachableError(
            f"the online store {shown(config.url.get_secret_value())} does not answer ({error}); start it, "
            "or see PERENNIAL_ONLINE_STORE_URL"
        ) from error
    except redis.RedisError as error:
        where, cause = shown(config.url.get_secret_value()), _cause(error)
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


def _times(table: Any) -> tuple[str, str]:
    """The hash fields of a view's event time, as Feast names it, and of its created time."""
    return f"_ts:{table.name}", f"_created:{table.name}"


def _field(table: Any, feature: str) -> bytes:
    found: bytes = field_of(f"{table.name}:{feature}")
    return found


def _timestamp(at_us: int) -> bytes:
    seconds, micro = divmod(at_us, 1_000_000)
    written: bytes = Timestamp(seconds=seconds, nanos=micro * 1_000).SerializeToString()
    return written


def _micros_of(written: bytes) -> int:
    moment = Timestamp.FromString(written)
    return int(moment.seconds * 1_000_000 + moment.nanos // 1_000)


def _is_key(key: bytes, prefix: bytes, project: bytes) -> bool:
    """Whether it is one text key of the project: of `shop`, and not of `my_shop`."""
    lengths = key[len(prefix) + 4 : len(prefix) + 8]
    return len(key) == len(prefix) + 8 + int.from_bytes(lengths, "little") + len(project)


def _literal(pattern: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\" else bytes([c]) for c in pattern)


def _in_parts(rows: Iterable[Any]) -> Iterator[list[Any]]:
    part: list[Any] = []
    for row in rows:
        part.append(row)
        if len(part) == KEYS_A_PIPELINE:
            yield part
            part = []
    if part:
        yield part
