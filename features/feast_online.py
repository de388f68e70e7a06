"""Feast's SQLite online store, guarded: a row goes in only if it is not older than what is there. And Feast's registry file.

Feast finds these classes by their paths in its configuration, and imports Feast on the way; that is why they have a
module of their own. The same guard for Redis is in features/feast_redis.py.

Feast keeps a row a feature and whole seconds; here a key is one row with microseconds, so that all its features move
together, and one conditional upsert, which SQLite runs under its write lock, is the whole guard.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import polars as pl

from features.feast_layout import KEY_VERSION, NUMBER, key_bytes
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from features.light_feast import (
    FileRegistryStore,
    Map,
    SqliteOnlineStore,
    SqliteOnlineStoreConfig,
    Value,
    deserialize_entity_key,
    serialize_entity_key,
)
from perennial.errors import BlockedError, StateError

# Feast's words for what it writes: (EntityKey, values by feature, event time, created time or None).
FeastRow: TypeAlias = tuple[Any, dict[str, Any], datetime, datetime | None]
FeastAnswer: TypeAlias = tuple[datetime | None, dict[str, Any] | None]

# A reader of another key waits for nobody (WAL); a writer waits this long for the one before it.
BUSY_S = 30.0
ROWS_A_TRANSACTION = 50_000
# SQLite takes at most 32,766 variables in a statement.
KEYS_A_QUERY = 10_000
# A row whose creation time is not known is as old as can be.
UNKNOWN_US = 0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NewestOnlineStore(Protocol):
    """What both guarded stores can do besides what Feast asks of them, by column instead of by row."""

    def write_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """Put rows in, each unless the store holds a newer one of its key.

        Newer is by (event time, created time), to the microsecond; an equal row takes the place of the one there.

        Args:
            config: Feast's configuration.
            table: Feast's view.
            rows: the view's join key (text), `event_timestamp`, `created_timestamp` and its features (numbers or null).

        Returns:
            How many rows were put in.
        """

    def read_numbers(self, config: Any, table: Any, keys: Sequence[str]) -> pl.DataFrame:
        """The rows of those of the keys that the store holds, in no order, in the columns of `write_numbers`.

        `created_timestamp` is null where the store does not know it.
        """

    def remove_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """Take rows out, each unless another one of its key is there by now.

        Args:
            rows: what `read_numbers` told; their times say which rows they are.

        Returns:
            How many rows were taken out.
        """

    def keys(self, config: Any, table: Any) -> Iterator[list[str]]:
        """Every key of the view that the store holds, in batches; one that comes in meanwhile may be missed."""


class AtomicRegistryStore(FileRegistryStore):
    """Feast's registry file, replaced as a whole: a killed writer leaves the old one, a reader sees one or the other."""

    def _write_registry(self, registry_proto: Any) -> None:
        beside = copy(self)
        beside._filepath = self._filepath.with_name(f"{self._filepath.name}.{os.getpid()}.new")
        FileRegistryStore._write_registry(beside, registry_proto)
        beside._filepath.replace(self._filepath)


class NewestSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Feast's configuration of the store below; Feast looks for this name."""

    type: Literal["features.feast_online.NewestSqliteOnlineStore"] = "features.feast_online.NewestSqliteOnlineStore"


class NewestSqliteOnlineStore(SqliteOnlineStore):
    """Feast's SQLite store, never with an older row over a newer one, and readable while it is written."""

    _conn: sqlite3.Connection | None = None
    _read_file: tuple[int, int] | None = None
    _written_file: tuple[int, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._write_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._found_tables: set[str] = set()

    def update(
        self,
        config: Any,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],  # noqa: ARG002 - Feast's signature
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Make the views' tables, and take over what Feast's own store had written to the same file."""
        with self._transaction(config) as connection:
            for table in tables_to_keep:
                connection.execute(_create(_table(config, table)))
                _take_over(connection, _feast_table(config, table), _table(config, table))
            for table in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, table)}")

    def plan(self, config: Any, desired_registry_proto: Any) -> list[Any]:  # noqa: ARG002 - Feast's signature
        """Nothing: `update` makes the tables."""
        return []

    def teardown(self, config: Any, tables: Sequence[Any], entities: Sequence[Any]) -> None:
        """Remove the file with all that belongs to it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        super().teardown(config, tables, entities)
        for suffix in ("-wal", "-shm"):
            Path(self._get_db_path(config) + suffix).unlink(missing_ok=True)

    def online_write_batch(
        self, config: Any, table: Any, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """Feast's way to write, with the same guard."""
        self._put(
            config,
            table,
            [
                (
                    serialize_entity_key(key, KEY_VERSION),
                    Map(val=values).SerializeToString(),
                    micros(at),
                    micros(created),
                )
                for key, values, at, created in data
            ],
        )
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self, config: Any, table: Any, data: list[FeastRow], progress: Callable[[int], Any] | None
    ) -> None:
        """The same, off the event loop."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: Any,
        table: Any,
        entity_keys: list[Any],
        requested_features: list[str] | None = None,
    ) -> list[FeastAnswer]:
        """Event time and values of each key, in order; (None, None) where there is nothing."""
        asked = [serialize_entity_key(key, KEY_VERSION) for key in entity_keys]
        found = {key: (row, at) for key, row, at, _ in self._rows(config, table, asked)}
        return [_answer(*found[key], requested_features) if key in found else (None, None) for key in asked]

    def write_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """See `NewestOnlineStore`."""
        names = [f.name for f in table.features]
        entries = [entries_of(rows.get_column(name), partial(_entry, name)) for name in names]
        return self._put(
            config,
            table,
            list(
                zip(
                    key_bytes(table.join_keys[0], rows.get_column(table.join_keys[0])),
                    map(b"".join, zip(*entries, strict=True)) if entries else [b""] * rows.height,
                    rows.get_column(EVENT_TIMESTAMP).cast(pl.Int64).to_list(),
                    rows.get_column(CREATED_TIMESTAMP).cast(pl.Int64).fill_null(UNKNOWN_US).to_list(),
                    strict=True,
                )
            ),
        )

    def read_numbers(self, config: Any, table: Any, keys: Sequence[str]) -> pl.DataFrame:
        """See `NewestOnlineStore`."""
        asked = dict(zip(key_bytes(table.join_keys[0], keys), keys, strict=True))
        found = [
            (asked[key], at, created, Map.FromString(row).val)
            for key, row, at, created in self._rows(config, table, list(asked))
        ]
        return numbers_frame(table, found)

    def remove_numbers(self, config: Any, table: Any, rows: pl.DataFrame) -> int:
        """See `NewestOnlineStore`."""
        removed = 0
        statement = f"DELETE FROM {_table(config, table)} WHERE entity_key = ? AND event_us = ? AND created_us = ?"
        for some in rows.iter_slices(ROWS_A_TRANSACTION):
            with self._transaction(config) as connection:
                connection.execute(_create(_table(config, table)))
                removed += connection.executemany(statement, list(row_places(table, some))).rowcount
        return removed

    def keys(self, config: Any, table: Any) -> Iterator[list[str]]:
        """See `NewestOnlineStore`."""
        after = b""
        while True:
            with _file_answers(self._get_db_path(config)):
                # In steps: one long query would hold a snapshot of the file, and the log of all writes since.
                found = self._reader(config, table).execute(
                    f"SELECT entity_key FROM {_table(config, table)} WHERE entity_key > ? ORDER BY entity_key LIMIT ?",
                    (after, KEYS_A_QUERY),
                )
                batch = [key for (key,) in found]
            if not batch:
                return
            after = batch[-1]
            yield [deserialize_entity_key(key, KEY_VERSION).entity_values[0].string_val for key in batch]

    def _rows(self, config: Any, table: Any, keys: list[bytes]) -> Iterator[tuple[bytes, bytes, int, int]]:
        connection = self._reader(config, table)
        for i in range(0, len(keys), KEYS_A_QUERY):
            some = keys[i : i + KEYS_A_QUERY]
            with _file_answers(self._get_db_path(config)):
                found = connection.execute(
                    f"SELECT entity_key, row, event_us, created_us FROM {_table(config, table)} "
                    f"WHERE entity_key IN ({','.join('?' * len(some))})",
                    some,
                ).fetchall()
            yield from found

    def _put(self, config: Any, table: Any, rows: list[tuple[bytes, bytes, int, int]]) -> int:
        statement = _upsert(_table(config, table))
        written = 0
        for i in range(0, len(rows), ROWS_A_TRANSACTION):
            with self._transaction(config) as connection:
                # The file may have been removed since the definitions were applied.
                connection.execute(_create(_table(config, table)))
                written += connection.executemany(statement, rows[i : i + ROWS_A_TRANSACTION]).rowcount
        return written

    def _get_conn(self, config: Any) -> sqlite3.Connection:
        """The connection that reads; another one writes, so that nobody reads what is not committed."""
        path = self._get_db_path(config)
        file = _identity(path)
        # SQLite goes on in a file that was removed for ever, and says nothing.
        if self._conn is None or (file is not None and file != self._read_file):
            self._conn, self._read_file = _connect(path), file
            self._found_tables.clear()
        return self._conn

    def _reader(self, config: Any, table: Any) -> sqlite3.Connection:
        """`_get_conn` of a file that has the view's table, which one that took the place of a removed file may not."""
        connection, name = self._get_conn(config), _table(config, table)
        if name not in self._found_tables:
            with _file_answers(self._get_db_path(config)):
                found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name.strip('"'),)).fetchone()
            if not found:
                with self._transaction(config) as writer:
                    writer.execute(_create(name))
            self._found_tables.add(name)
        return connection

    @contextmanager
    def _transaction(self, config: Any) -> Iterator[sqlite3.Connection]:
        path = self._get_db_path(config)
        with self._write_lock, _file_answers(path):
            if self._writer is None or _identity(path) != self._written_file:
                self._writer = _connect(path)
                self._written_file = _identity(path)
            # As a writer from the start: a reader that turns into one is refused if another wrote in between.
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


def micros(moment: datetime | None) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as it is to Feast."""
    if moment is None:
        return UNKNOWN_US
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - EPOCH) // timedelta(microseconds=1)


def row_places(table: Any, rows: pl.DataFrame) -> Iterator[tuple[bytes, int, int]]:
    """(key, event time, created time) of rows, as the store has them."""
    return zip(
        key_bytes(table.join_keys[0], rows.get_column(table.join_keys[0])),
        rows.get_column(EVENT_TIMESTAMP).cast(pl.Int64),
        rows.get_column(CREATED_TIMESTAMP).cast(pl.Int64).fill_null(UNKNOWN_US),
        strict=True,
    )


def entries_of(numbers: pl.Series, message: Callable[[Any], Any]) -> list[bytes]:
    """A serialised message a number, null being Feast's empty value.

    Args:
        numbers: numbers and nulls.
        message: Feast's value -> the message; the number must be the last it writes.
    """
    empty = message(Value()).SerializeToString()
    # A double is written as its eight bytes, so all before them is the same for every number.
    head = message(Value(double_val=1.0)).SerializeToString()[: -NUMBER.size]
    pack = NUMBER.pack
    return [empty if number is None else head + pack(number) for number in numbers.cast(pl.Float64)]


def numbers_frame(table: Any, found: Sequence[tuple[str, int, int, Any]]) -> pl.DataFrame:
    """(key, event time, created time, values by feature) as a frame in the columns of `write_numbers`."""
    names = [f.name for f in table.features]
    moment = pl.Datetime("us", "UTC")

    def number(values: Any, name: str) -> float | None:
        value = values[name] if name in values else None  # noqa: SIM401 - a map of messages has no get
        return value.double_val if value is not None and value.HasField("double_val") else None

    columns = {
        table.join_keys[0]: pl.Series([key for key, *_ in found], dtype=pl.String),
        EVENT_TIMESTAMP: pl.Series([at for _, at, *_ in found], dtype=pl.Int64).cast(moment),
        CREATED_TIMESTAMP: pl.Series([c or None for _, _, c, _ in found], dtype=pl.Int64).cast(moment),
    }
    columns |= {name: pl.Series([number(v, name) for *_, v in found], dtype=pl.Float64) for name in names}
    return pl.DataFrame(columns)


def _entry(name: str, value: Any) -> Any:
    return Map(val={name: value})


def _answer(row: bytes, at: int, requested: list[str] | None) -> FeastAnswer:
    values = Map.FromString(row).val
    wanted = {name: values[name] for name in values if requested is None or name in requested}
    return EPOCH + timedelta(microseconds=at), wanted


def _table(config: Any, table: Any) -> str:
    # Neither name can hold a dot, so it is nobody else's.
    return f'"{config.project}.{table.name}"'


def _feast_table(config: Any, table: Any) -> str:
    return f"{config.project}_{table.name}"


def _create(table: str) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS {table} (entity_key BLOB PRIMARY KEY, row BLOB NOT NULL, "
        "event_us INTEGER NOT NULL, created_us INTEGER NOT NULL) WITHOUT ROWID"
    )


def _upsert(table: str) -> str:
    return (
        f"INSERT INTO {table} AS held (entity_key, row, event_us, created_us) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (entity_key) DO UPDATE SET row = excluded.row, event_us = excluded.event_us, "
        "created_us = excluded.created_us "
        "WHERE (excluded.event_us, excluded.created_us) >= (held.event_us, held.created_us)"
    )


def _connect(path: str) -> sqlite3.Connection:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _file_answers(path):
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        # Refused while another process makes the same change; then the file is as it should be, or will be next time.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        return connection


def _identity(path: str) -> tuple[int, int] | None:
    """Which file is at a path; None if there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _file_answers(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        kind = BlockedError if isinstance(error, sqlite3.OperationalError) else StateError
        raise kind(
            f"the online store at {path} cannot be used ({error}); mend it, or remove it and write it again from the lake "
            "by `perennial features materialize PIPELINE`"
        ) from error


def _take_over(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Move what Feast's own store wrote: a row a feature, in whole seconds."""
    columns = {name for _, name, *_ in connection.execute(f'PRAGMA table_info("{old}")')}
    if "feature_name" not in columns:
        return
    written = connection.execute(
        f'SELECT entity_key, feature_name, value, event_ts, created_ts FROM "{old}" ORDER BY entity_key'
    )
    for key, features in groupby(written, key=lambda row: row[0]):
        of_key = list(features)
        values = {name: Value.FromString(value) for _, name, value, _, _ in of_key}
        at, created = (max(_feast_micros(row[i]) for row in of_key) for i in (3, 4))
        connection.execute(_upsert(new), (key, Map(val=values).SerializeToString(), at, created))
    connection.execute(f'DROP TABLE "{old}"')


def _feast_micros(seconds: int | None) -> int:
    # Feast takes UTC for local time as it writes, and back as it reads.
    return UNKNOWN_US if seconds is None else micros(datetime.fromtimestamp(seconds))  # noqa: DTZ006
