"""Prefect's server on SQLite, as the local stack runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from flows.prefect_server import write_in_turn


async def two_that_read_and_then_write(database: Path) -> list[BaseException | None]:
    """Two transactions at once, each of which reads before it writes; what became of them."""
    configuration = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{database}", timeout=10)
    engine = await configuration.engine()
    both_have_begun = asyncio.Event()

    async def one(number: int) -> None:
        async with await configuration.session(engine) as session, configuration.begin_transaction(session):
            await session.execute(sa.text("SELECT count(*) FROM things"))
            if number == 1:
                both_have_begun.set()
            else:
                # Where they take turns, the other one cannot have begun.
                await asyncio.wait([asyncio.create_task(both_have_begun.wait())], timeout=0.5)
            await session.execute(sa.text("INSERT INTO things VALUES (:n)"), {"n": number})

    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE things (n INTEGER)"))
        return await asyncio.gather(one(0), one(1), return_exceptions=True)
    finally:
        await engine.dispose()


def test_without_turns_a_reader_cannot_become_a_writer(tmp_path: Path) -> None:
    # When this passes no more, Prefect has learned it and `write_in_turn` can go.
    found = asyncio.run(two_that_read_and_then_write(tmp_path / "prefect.db"))
    assert [str(e) for e in found if e is not None and "database is locked" in str(e)]


def test_in_turn_both_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
    write_in_turn()
    assert asyncio.run(two_that_read_and_then_write(tmp_path / "prefect.db")) == [None, None]
