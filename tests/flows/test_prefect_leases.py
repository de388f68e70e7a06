from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from postgres import postgres as postgres  # a fixture
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata, get_concurrency_lease_storage
from prefect.settings import (
    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)
from prefect.types._concurrency import ConcurrencyLeaseHolder

from flows.prefect_leases import _MADE, ConcurrencyLeaseStorage
from perennial.errors import UsageError

MINUTE = timedelta(minutes=1)


@pytest.fixture
def url(postgres: str) -> str:
    """A database without leases, as Prefect's server knows it."""
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        if sa.inspect(connection).has_table("perennial_leases"):
            connection.execute(sa.text("DELETE FROM perennial_leases"))
    engine.dispose()
    return postgres.replace("+psycopg:", "+asyncpg:")


def test_a_lease_is_there_for_a_server_that_has_begun_anew(url: str) -> None:
    limit, run = uuid4(), str(uuid4())

    async def go() -> None:
        metadata = ConcurrencyLimitLeaseMetadata(slots=1, holder=ConcurrencyLeaseHolder(type="flow_run", id=run))
        before = datetime.now(UTC)
        made = await ConcurrencyLeaseStorage(url).create_lease([limit], 5 * MINUTE, metadata)
        after = ConcurrencyLeaseStorage(url)
        assert await after.read_lease(made.id) == made
        assert before + 5 * MINUTE <= made.expiration <= datetime.now(UTC) + 5 * MINUTE
        assert await after.read_active_lease_ids() == [made.id]
        assert await after.list_holders_for_limit(limit) == [(made.id, metadata.holder)]
        assert await after.list_holders_for_limit(uuid4()) == []
        await after.revoke_lease(made.id)
        assert await after.read_lease(made.id) is None
        assert await after.renew_lease(made.id, MINUTE) is False
        assert await after.read_active_lease_ids() == []

    asyncio.run(go())


def test_a_run_whose_server_was_away_for_some_minutes_keeps_its_slot(url: str) -> None:
    async def go() -> None:
        storage, limit = ConcurrencyLeaseStorage(url), uuid4()
        away = await storage.create_lease([limit], -9 * MINUTE)
        dead = await storage.create_lease([limit], -11 * MINUTE)
        assert await storage.read_expired_lease_ids() == [dead.id]
        assert await storage.read_active_lease_ids() == [away.id]
        assert await storage.renew_lease(away.id, 5 * MINUTE) is True
        renewed = await storage.read_lease(away.id)
        assert renewed
        assert renewed.expiration > datetime.now(UTC) + 4 * MINUTE
        assert (renewed.created_at, renewed.resource_ids, renewed.metadata) == (away.created_at, [limit], None)

    asyncio.run(go())


def test_leases_are_told_page_by_page(url: str) -> None:
    async def go() -> None:
        storage = ConcurrencyLeaseStorage(url)
        made = [(await storage.create_lease([uuid4()], n * MINUTE)).id for n in range(1, 6)]
        assert await storage.read_active_lease_ids(limit=2) == made[:2]
        assert await storage.read_active_lease_ids(limit=2, offset=4) == made[4:]
        assert await storage.read_expired_lease_ids(limit=2) == []

    asyncio.run(go())


def test_two_that_begin_at_once_make_one_table(url: str, postgres: str) -> None:
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS perennial_leases"))
    engine.dispose()

    async def go() -> None:
        _MADE.clear()
        await asyncio.gather(*(ConcurrencyLeaseStorage(url).create_lease([uuid4()], MINUTE) for _ in range(5)))
        assert len(await ConcurrencyLeaseStorage(url).read_active_lease_ids()) == 5

    asyncio.run(go())


def test_prefect_finds_it_by_its_setting_and_a_database_that_cannot_keep_leases_is_told(url: str) -> None:
    ours = {PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: "flows.prefect_leases"}
    with temporary_settings({**ours, PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
        assert isinstance(get_concurrency_lease_storage(), ConcurrencyLeaseStorage)
    with (
        temporary_settings({**ours, PREFECT_SERVER_DATABASE_CONNECTION_URL: "sqlite+aiosqlite:///x.db"}),
        pytest.raises(UsageError, match="set PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    ):
        get_concurrency_lease_storage()
