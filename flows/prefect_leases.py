"""Where the cluster's Prefect server keeps who holds a deployment's slot: in its own database.

Its setting is PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE. Prefect brings two such places. Leases in memory are forgotten with the
process, and every run that held one is ended. Leases in files need a disk, which is in one zone, and its pod can be in no other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from prefect.server.concurrency.lease_storage import ConcurrencyLeaseStorage as PrefectsStorage
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
from prefect.server.utilities.leasing import ResourceLease
from prefect.settings import get_current_settings
from prefect.types._concurrency import ConcurrencyLeaseHolder
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from perennial.errors import UsageError

# A run renews its lease of 300 s every 225 s. A server that was away for longer than the rest would first of all take the slots
# of those that could not renew, and Prefect ends a run whose slot is taken.
GRACE = timedelta(minutes=10)

_TABLES = sa.MetaData()
_LEASES = sa.Table(
    "perennial_leases",
    _TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("resource_ids", ARRAY(sa.Uuid), nullable=False),
    sa.Column("metadata", JSONB(none_as_null=True)),
    sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column("expiration", sa.TIMESTAMP(timezone=True), nullable=False, index=True),
)
_MADE: set[str] = set()

Lease = ResourceLease[ConcurrencyLimitLeaseMetadata]


class ConcurrencyLeaseStorage(PrefectsStorage):
    """Leases in a table of PostgreSQL. Prefect makes one of these for every question, and finds the class by this name.

    Args:
        url: of the database; None = the server's own.
    """

    def __init__(self, url: str | None = None) -> None:
        own = get_current_settings().server.database.connection_url
        self._url = url or (own.get_secret_value() if own else "")
        if not self._url.startswith("postgresql+asyncpg:"):
            raise UsageError(
                "leases are kept in PostgreSQL and Prefect's database is none; set PREFECT_SERVER_DATABASE_CONNECTION_URL to "
                "postgresql+asyncpg://..., or PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE to one of Prefect's own"
            )

    async def create_lease(
        self, resource_ids: list[UUID], ttl: timedelta, metadata: ConcurrencyLimitLeaseMetadata | None = None
    ) -> Lease:
        """Keep a new lease, which is held for `ttl`."""
        lease = ResourceLease(resource_ids=resource_ids, metadata=metadata, expiration=datetime.now(UTC) + ttl)
        values = {
            "id": lease.id,
            "resource_ids": resource_ids,
            "metadata": metadata.model_dump(mode="json") if metadata else None,
            "created_at": lease.created_at,
            "expiration": lease.expiration,
        }
        async with self._connection() as connection:
            await connection.execute(_LEASES.insert().values(values))
        return lease

    async def read_lease(self, lease_id: UUID) -> Lease | None:
        """The lease; None if nobody holds it."""
        async with self._connection() as connection:
            row = (await connection.execute(_LEASES.select().where(_LEASES.c.id == lease_id))).one_or_none()
        return _lease(row) if row else None

    async def renew_lease(self, lease_id: UUID, ttl: timedelta) -> bool:
        """Hold a lease for `ttl` from now on; False if nobody holds it."""
        renewed = _LEASES.update().where(_LEASES.c.id == lease_id).values(expiration=datetime.now(UTC) + ttl)
        async with self._connection() as connection:
            return (await connection.execute(renewed)).rowcount > 0

    async def revoke_lease(self, lease_id: UUID) -> None:
        """Forget a lease."""
        async with self._connection() as connection:
            await connection.execute(_LEASES.delete().where(_LEASES.c.id == lease_id))

    async def read_active_lease_ids(self, limit: int = 100, offset: int = 0) -> list[UUID]:
        """Leases whose slots are held."""
        return await self._ids(_LEASES.c.expiration > datetime.now(UTC) - GRACE, limit, offset)

    async def read_expired_lease_ids(self, limit: int = 100) -> list[UUID]:
        """Leases that nobody has renewed, not even within `GRACE`."""
        return await self._ids(_LEASES.c.expiration <= datetime.now(UTC) - GRACE, limit, 0)

    async def list_holders_for_limit(self, limit_id: UUID) -> list[tuple[UUID, ConcurrencyLeaseHolder]]:
        """Who holds slots of a limit."""
        held = (_LEASES.c.expiration > datetime.now(UTC) - GRACE) & _LEASES.c.resource_ids.any(limit_id)
        async with self._connection() as connection:
            leases = [_lease(row) for row in await connection.execute(_LEASES.select().where(held))]
        return [(lease.id, lease.metadata.holder) for lease in leases if lease.metadata and lease.metadata.holder]

    async def _ids(self, chosen: sa.ColumnElement[bool], limit: int, offset: int) -> list[UUID]:
        asked = sa.select(_LEASES.c.id).where(chosen).order_by(_LEASES.c.expiration, _LEASES.c.id)
        async with self._connection() as connection:
            return list((await connection.execute(asked.limit(limit).offset(offset))).scalars())

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        # One of its own: whoever asks holds one of Prefect's pool, and may hold the last.
        engine = create_async_engine(self._url, poolclass=sa.NullPool)
        async with engine.begin() as connection:
            if self._url not in _MADE:
                # Two at once would both try to make it.
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(_LEASES.name))))
                await connection.run_sync(_TABLES.create_all)
            yield connection
        _MADE.add(self._url)


def _lease(row: sa.Row[Any]) -> Lease:
    metadata = ConcurrencyLimitLeaseMetadata.model_validate(row.metadata) if row.metadata else None
    return ResourceLease(
        id=row.id,
        resource_ids=list(row.resource_ids),
        metadata=metadata,
        created_at=row.created_at,
        expiration=row.expiration,
    )
