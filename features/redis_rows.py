"""The newest values of a pipeline's views, read from Redis without Feast.

Feast takes a second to import, and with what it imports 330 MB; the scoring service needs of it one HMGET a key. What is
read is what Feast's own store would read (features/feast_redis.py writes it): the bytes are in features/feast_layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from features.feast_layout import hash_field, key_bytes, number, read_time, time_fields
from features.redis_client import open_client, redis_answers
from perennial.settings import Settings
from pipelines.spec import FeatureView, PipelineSpec

if TYPE_CHECKING:
    from features.store import OnlineRow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisRows:
    """See `features.store.OnlineRows`. It connects when it is first asked; safe to share between threads.

    Raises:
        UsageError: the address is none of Redis.
    """

    def __init__(self, spec: PipelineSpec, settings: Settings) -> None:
        self._url = SecretStr(settings.online_store_url)
        self._client = open_client(self._url, settings.online_store_secret_arn)
        self._project = spec.name.encode()
        self._fields: dict[str, list[str | bytes]] = {view.name: _fields(view) for view in spec.views}

    def read(self, asked: Sequence[tuple[FeatureView, Sequence[str]]]) -> list[dict[str, OnlineRow]]:
        """See `features.store.OnlineRows`; all views in one round trip.

        Raises:
            UnreachableError: Redis does not answer.
            StateError: it refuses.
        """
        with redis_answers(self._url), self._client.pipeline(transaction=False) as pipe:
            for view, keys in asked:
                for key in key_bytes(view.entity, keys):
                    pipe.hmget(key + self._project, self._fields[view.name])
            answers = iter(pipe.execute())
        found = []
        for view, keys in asked:
            names = [a.name for a in view.aggregates]
            rows = ((key, next(answers)) for key in keys)
            found.append({key: _row(names, at, values) for key, (at, *values) in rows if at is not None})
        return found


def _fields(view: FeatureView) -> list[str | bytes]:
    return [time_fields(view.name)[0], *(hash_field(view.name, a.name) for a in view.aggregates)]


def _row(names: Sequence[str], at: bytes, values: Sequence[bytes | None]) -> OnlineRow:
    numbers = {name: held for name, value in zip(names, values, strict=True) if (held := number(value)) is not None}
    return EPOCH + timedelta(microseconds=read_time(at)), numbers
