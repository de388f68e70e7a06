"""The ledger of traffic: who served what share, when and why. Append-only, in SQL (SQLite or PostgreSQL).

Beside it lie the leases that keep canaries alive, and what the replicas of the scoring service observed during them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateTable

from perennial.database_engines import open_engine
from perennial.database_urls import shown
from perennial.errors import ConflictError, StateError, UnreachableError, UsageError
from rollout.observation import ArmObservation, ObservationRow

Action = Literal["promote", "start", "advance", "rollback"]

BUSY_TIMEOUT_S = 10


@dataclass(frozen=True)
class Model:
    """A version of a model, and the folder of its exported bundle (file:// or s3://)."""

    version: str
    uri: str


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: from `at` on, the challenger gets `share_pct` of the keys and the champion the rest.

    Attributes:
        pipeline: whose traffic.
        sequence: 1, 2, 3, ... without gaps within the pipeline.
        at: wall-clock time of the entry, UTC.
        action: what happened.
        champion: who answers; None only before the first promotion.
        challenger: the canary; None when there is none.
        share_pct: the challenger's share of the keys, 0 to 100; 0 without a challenger.
        reason: a sentence with the numbers that decided.
        as_of: the time the release belongs to when history is replayed; None = live.
    """

    pipeline: str
    sequence: int
    at: datetime
    action: Action
    champion: Model | None
    challenger: Model | None
    share_pct: float
    reason: str
    as_of: datetime | None


@dataclass(frozen=True)
class Examined:
    """What a database of the ledger is like.

    Attributes:
        address: without passwords.
        dialect: sqlite or postgresql.
        version: of the server.
        has_tables: whether anything of a ledger is there.
        may_make_tables: whether this user may; True of a file.
        missing: columns that it lacks, as `table.column`.
        now: the server's clock; None of a file.
    """

    address: str
    dialect: str
    version: str
    has_tables: bool
    may_make_tables: bool
    missing: tuple[str, ...]
    now: datetime | None


class _Utc(sa.types.TypeDecorator[datetime]):
    """An aware datetime, stored in UTC (SQLite drops the zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise UsageError(f"time {value.isoformat()} has no zone; pass an aware datetime in UTC")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


_METADATA = sa.MetaData()
_ENTRIES = sa.Table(
    "ledger_entries",
    _METADATA,
    sa.Column("pipeline", sa.String(100), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", _Utc, nullable=False),
    sa.Column("action", sa.String(20), nullable=False),
    sa.Column("champion_version", sa.Text),
    sa.Column("champion_uri", sa.Text),
    sa.Column("challenger_version", sa.Text),
    sa.Column("challenger_uri", sa.Text),
    sa.Column("share_pct", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("as_of", _Utc),
)
_LEASES = sa.Table(
    "canary_leases",
    _METADATA,
    sa.Column("pipeline", sa.String(100), primary_key=True),
    sa.Column("until", _Utc, nullable=False),
)
_OBSERVATIONS = sa.Table(
    "serving_observations",
    _METADATA,
    sa.Column("pipeline", sa.String(100), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.String(200), primary_key=True),
    sa.Column("replica", sa.String(200), primary_key=True),
    sa.Column("flush", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", _Utc, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("invalid", sa.BigInteger, nullable=False),
    sa.Column("latency_counts", sa.Text, nullable=False),
    sa.Column("pairs", sa.BigInteger, nullable=False),
    sa.Column("disagreement_sum", sa.Float(53), nullable=False),
    sa.Column("disagreement_squares", sa.Float(53), nullable=False),
    sa.Column("score_sum", sa.Float(53), nullable=False),
    sa.Column("failed_calls", sa.BigInteger, nullable=False, server_default="0"),
)
_OBSERVED = tuple(c.name for c in _OBSERVATIONS.columns)[6:]


class Ledger:
    """The ledger at a SQLAlchemy URL; tables are made on first use. Safe to share between threads.

    `secret_arn` names a secret of AWS that has the database's user and password, where the URL has none.

    Every method raises UnreachableError if the database does not answer, and StateError if what it holds is no ledger.
    """

    def __init__(self, url: str, secret_arn: str = "") -> None:
        try:
            self._engine = open_engine(url, secret_arn)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            raise UsageError(
                f"PERENNIAL_DATABASE_URL cannot be used ({error}); "
                "give sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME with its driver installed"
            ) from error
        self._address = shown(self._engine.url)
        self._has_tables = False
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _set_up_sqlite)

    def state(self, pipeline: str) -> Entry | None:
        """The latest entry of the pipeline, which is in force; None if nothing was ever released."""
        query = sa.select(_ENTRIES).where(_ENTRIES.c.pipeline == pipeline)
        with self._transaction() as connection:
            row = connection.execute(query.order_by(_ENTRIES.c.sequence.desc()).limit(1)).one_or_none()
        return None if row is None else _entry(row)

    def history(self, pipeline: str) -> list[Entry]:
        """Every entry of the pipeline, oldest first."""
        query = sa.select(_ENTRIES).where(_ENTRIES.c.pipeline == pipeline).order_by(_ENTRIES.c.sequence)
        with self._transaction() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def append(self, entry: Entry) -> Entry:
        """Add the entry that follows the one in force.

        Returns:
            The entry.

        Raises:
            ConflictError: its sequence is not the next one, because somebody else wrote first.
        """
        conflict = ConflictError(
            f"entry {entry.sequence} of pipeline {entry.pipeline!r} does not follow the ledger's latest one; "
            "somebody else wrote first: read the state again and retry"
        )
        newest = sa.select(sa.func.coalesce(sa.func.max(_ENTRIES.c.sequence), 0))
        try:
            with self._transaction() as connection:
                # This stops gaps; two writers of the same sequence are stopped by the primary key.
                last = connection.execute(newest.where(_ENTRIES.c.pipeline == entry.pipeline)).scalar_one()
                if entry.sequence != last + 1:
                    raise conflict
                connection.execute(_ENTRIES.insert().values(_columns(entry)))
        except sa.exc.IntegrityError:
            raise conflict from None
        return entry

    def renew_lease(self, pipeline: str, until: datetime) -> None:
        """Let the pipeline's canary live until then (UTC)."""
        renewal = _LEASES.update().where(_LEASES.c.pipeline == pipeline).values(until=until)
        try:
            with self._transaction() as connection:
                if not connection.execute(renewal).rowcount:
                    connection.execute(_LEASES.insert().values(pipeline=pipeline, until=until))
        except sa.exc.IntegrityError:
            # Another controller made the first lease in the same moment; its end is as good as this one's.
            return

    def lease_until(self, pipeline: str) -> datetime | None:
        """When the pipeline's lease ends (UTC); None if there never was one."""
        query = sa.select(_LEASES.c.until).where(_LEASES.c.pipeline == pipeline)
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none()

    def add_observations(self, rows: Iterable[ObservationRow]) -> None:
        """Store the rows of one flush, all or none; rows that are there already stay as they are."""
        values = [_observation_columns(row) for row in rows]
        if not values:
            return
        try:
            with self._transaction() as connection:
                connection.execute(_OBSERVATIONS.insert(), values)
        except sa.exc.IntegrityError:
            # The flush was stored before and only its acknowledgement was lost.
            return

    def observations(self, pipeline: str, version: str, sequence: int) -> ArmObservation:
        """What all replicas observed of the version under that entry, whatever their clocks say."""
        table = _OBSERVATIONS.c
        query = sa.select(*(table[name] for name in _OBSERVED)).where(
            table.pipeline == pipeline, table.sequence == sequence, table.version == version
        )
        total = ArmObservation()
        with self._transaction() as connection:
            for row in connection.execute(query).mappings():
                total += ArmObservation(**{**row, "latency_counts": tuple(json.loads(row["latency_counts"]))})
        return total

    def examine(self) -> Examined:
        """What kind of database this is and whether it takes entries, without leaving anything in it.

        A row is written and taken back. Tables that are not there are not made.
        """
        with self._transaction(as_it_is=True) as connection:
            inspector = sa.inspect(connection)
            missing: list[str] = []
            for table in _METADATA.sorted_tables:
                there = (
                    {c["name"] for c in inspector.get_columns(table.name)} if inspector.has_table(table.name) else ()
                )
                missing += [f"{table.name}.{c.name}" for c in table.columns if c.name not in there]
            tables = any(inspector.has_table(table.name) for table in _METADATA.sorted_tables)
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
            now, may_make_tables = None, True
            if connection.dialect.name == "postgresql":
                may = sa.func.has_schema_privilege(sa.func.current_schema(), "CREATE")
                now, may_make_tables = connection.execute(sa.select(sa.func.clock_timestamp(), may)).one()
            if tables and not missing:
                try_out = connection.begin_nested()
                connection.execute(_LEASES.insert().values(pipeline=f"try-out {uuid4()}", until=datetime.now(UTC)))
                try_out.rollback()
            connection.rollback()
        return Examined(
            self._address, connection.dialect.name, version, tables, bool(may_make_tables), tuple(missing), now
        )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, as_it_is: bool = False) -> Iterator[sa.Connection]:
        try:
            if not self._has_tables and not as_it_is:
                self._make_tables()
            with self._engine.connect() if as_it_is else self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, OSError) as error:
            raise UnreachableError(
                f"the ledger at {self._address} does not answer ({_first_line(error)}); check PERENNIAL_DATABASE_URL"
            ) from error
        except sa.exc.StatementError as error:
            if isinstance(error.orig, UsageError):
                raise error.orig from None
            raise StateError(
                f"what lies at {self._address} is no ledger ({_first_line(error)}); move it away or set "
                "PERENNIAL_DATABASE_URL to another database"
            ) from error

    def _make_tables(self) -> None:
        sqlite = self._engine.dialect.name == "sqlite"
        if sqlite and (database := self._engine.url.database):
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            if not sqlite:
                # PostgreSQL's IF NOT EXISTS is no protection against another process that does the same now.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x9E4E)))
            for table in _METADATA.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
            # A ledger of before this column was thought of.
            if "failed_calls" not in {c["name"] for c in sa.inspect(connection).get_columns(_OBSERVATIONS.name)}:
                added = CreateColumn(_OBSERVATIONS.c.failed_calls).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {_OBSERVATIONS.name} ADD COLUMN {added}"))
        self._has_tables = True


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    # The mode belongs to the file. Switching it does not wait for a lock, and who holds one is most likely switching too.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]


def _columns(entry: Entry) -> dict[str, Any]:
    values = dict(vars(entry))
    for role in ("champion", "challenger"):
        model: Model | None = values.pop(role)
        values |= {f"{role}_version": model and model.version, f"{role}_uri": model and model.uri}
    return values


def _entry(row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)
    for role in ("champion", "challenger"):
        version, uri = values.pop(f"{role}_version"), values.pop(f"{role}_uri")
        values[role] = None if version is None else Model(version, uri)
    return Entry(**values)


def _observation_columns(row: ObservationRow) -> dict[str, Any]:
    values = vars(row) | vars(row.observed)
    del values["observed"]
    return values | {"latency_counts": json.dumps(row.observed.latency_counts)}
