"""The local stack's Prefect server: `python -m flows.prefect_server`, which takes what `prefect server start` takes.

A new SQLite database gets its tables here first. The server would make them with the same migrations, but through an
asynchronous driver that hands each of 34,000 statements to a thread: 5 s on an idle machine and 14 s on a busy one.
Without that detour they take 3 s.
"""

from __future__ import annotations

import sqlite3
import sys
import warnings
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


def make_database(target: Path) -> None:
    """Make a Prefect database with the newest schema, whole or not at all; one that exists is left as it is.

    Args:
        target: where the SQLite file goes.
    """
    if target.exists():
        return
    import sqlalchemy
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from prefect.server.database import provide_database_interface
    from prefect.server.database.alembic_commands import alembic_config

    interface = provide_database_interface()
    config = alembic_config()
    script = ScriptDirectory.from_config(config)
    script.version_locations = [str(interface.orm.versions_dir)]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{unfinished}")

    # Python's driver would begin transactions at times of its own; the migrations count on explicit ones.
    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        # The file counts only once it is complete, so nothing has to survive a crash before that.
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "foreign_keys = OFF", "legacy_alter_table = OFF"):
            connection.execute(f"PRAGMA {pragma}")

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with (
        warnings.catch_warnings(),
        engine.connect() as connection,
        EnvironmentContext(
            config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)
        ) as environment,
    ):
        warnings.simplefilter("ignore", sqlalchemy.exc.SAWarning)
        environment.configure(
            connection=connection,
            target_metadata=interface.Base.metadata,
            render_as_batch=True,
            transaction_per_migration=True,
            template_args={"dialect": "sqlite"},
        )
        with environment.begin_transaction():
            environment.run_migrations()
    engine.dispose()
    unfinished.replace(target)


def write_in_turn() -> None:
    """Let transactions on SQLite wait for each other from their beginning.

    Prefect begins most of them as readers. One that then writes, after another wrote in between, fails at once however
    long it may wait for locks: the server answers 503, and its client tries again after two seconds or more. While
    flows run one after another, that met every flow run whose predecessor's tasks were still being recorded.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def in_turn(
        self: AioSqliteConfiguration,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG001 - always so
    ) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = in_turn  # type: ignore[method-assign, assignment]


def main() -> None:
    """Make the database where it is missing, then serve until SIGTERM."""
    from prefect.cli import app
    from prefect.settings import get_current_settings
    from sqlalchemy.engine import make_url

    address = get_current_settings().server.database.connection_url
    url = make_url(address.get_secret_value()) if address else None
    if url and url.get_backend_name() == "sqlite" and url.database:
        make_database(Path(url.database))
        write_in_turn()
    sys.argv[:1] = ["prefect", "server", "start"]
    app()


if __name__ == "__main__":
    main()
