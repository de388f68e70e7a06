"""The event lake: Apache Iceberg tables by pyiceberg. The one module that knows them.

Rows and the Kafka positions they came from commit together, as data files and properties of one snapshot, so the lake,
not the broker, says what was consumed. A second writer's commit fails instead of being retried on top, which would
double its rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from features.catalog import answering, catalog_of
from features.places import OFFSET, PARTITION, first_offsets, read_places
from features.snapshots import ancestors, let_go_of_old_snapshots, pin, told, words
from perennial.errors import BlockedError, ConflictError, PerennialError, StateError
from perennial.settings import Settings
from perennial.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

LOG = logging.getLogger(__name__)
OFFSETS = "perennial.offsets"
EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
TABLE_PROPERTIES = {
    # Retried on top of another writer's commit, an append would double its rows.
    "commit.retry.num-retries": "0",
    # One manifest a commit would make every scan open as many files as there were commits.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "8",
    "write.metadata.previous-versions-max": "4",
    "write.metadata.delete-after-commit.enabled": "true",
    # Files are chosen by these columns; of the others, least and greatest values only make manifests larger.
    "write.metadata.metrics.default": "none",
    **{
        f"write.metadata.metrics.column.{name}": "full"
        for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP, PARTITION, OFFSET)
    },
}
APPEND_TRIES = 5
POLARS_KNOWS = {
    f"s3.{name}"
    for name in (
        "endpoint",
        "access-key-id",
        "secret-access-key",
        "session-token",
        "region",
        "proxy-uri",
        "connect-timeout",
        "request-timeout",
        "force-virtual-addressing",
    )
}
IS_DUPLICATE = "is_duplicate"


@dataclass(frozen=True)
class LakeCommit:
    """What one commit added.

    Attributes:
        table: name of the table.
        snapshot_id: the snapshot that holds the rows.
        rows: rows added.
        offsets: next position by Kafka partition, after this commit; empty for tables that are not fed by Kafka.
    """

    table: str
    snapshot_id: int
    rows: int
    offsets: Mapping[int, int]


class Lake:
    """The tables of one pipeline: a namespace of its own in the catalog."""

    def __init__(self, settings: Settings, namespace: str) -> None:
        self.settings = settings
        self.warehouse = settings.warehouse
        self.catalog_uri = settings.catalog_uri
        self.namespace = namespace
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        """The catalog, opened on first use."""
        if self._catalog is None:
            from sqlalchemy.exc import IntegrityError

            catalog = catalog_of(self.settings)
            with self.answering(), suppress(IntegrityError):  # another process made it between the look and the making
                catalog.create_namespace_if_not_exists(self.namespace)
            self._catalog = catalog
        return self._catalog

    def answering(self) -> AbstractContextManager[None]:
        """Tell in a sentence what the catalog or its files refuse."""
        return answering(self.catalog_uri, self.warehouse)

    def append(
        self,
        table: str,
        frame: pl.DataFrame,
        offsets: Mapping[int, int] | None = None,
        properties: Mapping[str, str] | None = None,
        partition_by: str | None = EVENT_TIMESTAMP,
        read_from: Mapping[int, int] | None = None,
        still: Mapping[str, str | None] | None = None,
    ) -> LakeCommit:
        """Append rows, and the Kafka positions they reach, in one atomic commit.

        Args:
            table: table name; made from the frame's schema if it does not exist.
            frame: rows to add. Columns the table lacks are added to it as optional columns.
            offsets: next position to read by partition; None leaves the table's positions as they are.
            properties: what else the snapshot says about itself. What is said in perennial's own words holds until it is
                said anew.
            partition_by: timestamp column whose day partitions a new table; None for no partitions.
            read_from: the table's positions that the rows were read from; None does not look at them. With them, a writer
                that moved no positions, such as a compaction, is let pass and the append tried again.
            still: properties that the table must still tell, None for one that it must not; default does not look.

        Returns:
            What was committed.

        Raises:
            ConflictError: another writer committed first, or moved the positions or what must still hold since; nothing of
                this append is visible.
            StateError: the rows do not fit the table.
            BlockedError: the disk is full, or somebody locks the catalog.
            UnreachableError: the catalog or S3 does not answer. If only its answer was lost, the rows are there: read
                the positions again.
        """
        from pyiceberg.exceptions import CommitFailedException

        said = dict(properties or {})
        # Positions that move tell whether a commit happened. Without them, a second try could double the rows.
        moves = read_from is not None and any(read_from.get(p) != at for p, at in (offsets or {}).items())
        for tries_left in reversed(range(APPEND_TRIES if moves else 1)):
            try:
                with self.answering():
                    return self._append(table, frame, offsets or {}, said, partition_by, read_from, still or {})
            except CommitFailedException as error:
                if not tries_left:
                    raise ConflictError(
                        f"another writer committed to {self.namespace}.{table} first; nothing was kept",
                        ", run it again",
                    ) from error
            except OSError as error:
                raise BlockedError(
                    f"the lake at {self.warehouse} did not take {counted(frame.height, 'row')}: {error}; mend it",
                    ", run again",
                ) from error
        raise AssertionError("unreachable")

    def _append(
        self,
        table: str,
        frame: pl.DataFrame,
        offsets: Mapping[int, int],
        properties: Mapping[str, str],
        partition_by: str | None,
        read_from: Mapping[int, int] | None,
        still: Mapping[str, str | None],
    ) -> LakeCommit:
        from features.transaction import OneCopyTransaction

        schema = frame.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        target = self._table(table, schema, partition_by)
        check_fits(target, schema)
        known = positions_of(target)
        # The catalog refuses what another writer overtakes from here on; this, what it overtook before.
        if read_from is not None and known != read_from:
            raise ConflictError(
                f"another writer moved {self.namespace}.{table} from {dict(read_from)} to {known}; nothing was kept",
                ", run it again",
            )
        check_still(target, still)
        positions = {**known, **offsets}
        transaction = OneCopyTransaction(target)
        with transaction:
            transaction.append_frame(frame, {**told(target), OFFSETS: json.dumps(positions), **properties})
        snapshot = target.current_snapshot()
        if snapshot is None:
            raise StateError(f"{self.namespace}.{table} has no snapshot after a commit; the catalog is damaged")
        self.tidy(target)
        return LakeCommit(table, snapshot.snapshot_id, frame.height, positions)

    def tidy(self, target: Table) -> None:
        """Housekeeping after a commit, which has happened whatever becomes of this; the next commit tries again."""
        try:
            with self.answering():
                let_go_of_old_snapshots(target)
        except (PerennialError, OSError) as error:
            cause = error.what if isinstance(error, PerennialError) else error
            LOG.warning("old snapshots of %s stay for now: %s", ".".join(target.name()), cause)

    def pin(self, table: str, snapshot_id: int, name: str) -> None:
        """Keep a snapshot for good, under a name: rows are never lost, but unnamed snapshots are let go with time.

        Raises:
            ConflictError: other writers kept committing first.
            StateError: there is no such table or snapshot.
        """
        with self.answering():
            pin(lambda: self.existing(table), snapshot_id, name)

    def read(
        self,
        table: str,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: tuple[str, ...] = ("*",),
        snapshot_id: int | None = None,
    ) -> pl.DataFrame:
        """Rows by event time, [since, until), of the current or of an older snapshot.

        Raises:
            StateError: there is no such table or snapshot.
        """
        target = self.existing(table)
        if snapshot_id is not None and target.snapshot_by_id(snapshot_id) is None:
            raise StateError(
                f"{self.namespace}.{table} no longer has snapshot {snapshot_id}; read it as it is now, or another snapshot"
            )
        with self.answering():
            return rows_of(target, since, until, snapshot_id).select(*columns).collect()

    def read_places(
        self,
        table: str,
        start: Mapping[int, int],
        end: Mapping[int, int],
        columns: tuple[str, ...] = ("*",),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pl.DataFrame:
        """Rows by where they were in Kafka: of each partition in `end`, offsets from `start` (default 0) to before `end`.

        Files whose offsets are all outside, by the statistics of their columns, are not opened.

        Args:
            table: a table with columns kafka_partition and kafka_offset.
            start: first offset by partition.
            end: offset after the last by partition; other partitions are left out.
            columns: names of the columns to read.
            since: first event time.
            until: first event time that is left out.

        Raises:
            StateError: there is no such table.
        """
        target = self.existing(table)
        ranges = {p: (start.get(p, 0), position) for p, position in end.items()}
        with self.answering():
            return read_places(rows_of(target, since, until), ranges, columns)

    def offsets(self, table: str) -> dict[int, int]:
        """Next Kafka position by partition, as of the last commit; empty if nothing was committed yet."""
        found = self._found(table)
        return positions_of(found) if found else {}

    def snapshot_id(self, table: str) -> int | None:
        """Id of the current snapshot; None if there is no table or nothing in it."""
        found = self._found(table)
        snapshot = found.current_snapshot() if found else None
        return snapshot.snapshot_id if snapshot else None

    def property(self, table: str, name: str) -> str | None:
        """What the newest snapshot that tells it says under that name; None if none that is kept does.

        Names that begin with `perennial.` are carried over by every append and compaction; others go with their snapshot.
        """
        found = self._found(table)
        return next((words(s)[name] for s in ancestors(found) if name in words(s)), None) if found else None

    def words(self, table: str) -> dict[str, str]:
        """All that the table says in perennial's own words (`perennial.*`); nothing if there is no such table."""
        found = self._found(table)
        return told(found) if found else {}

    def rows(self, table: str) -> int:
        """Number of rows, from the snapshot's summary."""
        found = self._found(table)
        snapshot = found.current_snapshot() if found else None
        return int(snapshot.summary["total-records"] or 0) if snapshot and snapshot.summary else 0

    def count(self, table: str, since: datetime | None, until: datetime | None) -> int:
        """Number of rows by event time, [since, until); mostly from metadata."""
        found = self._found(table)
        with self.answering():
            return int(scan(found, since, until).count()) if found else 0

    def newest(self, table: str, since: datetime | None = None) -> datetime | None:
        """Newest event time of a table, from the statistics of its files; None if there are no rows.

        Args:
            table: a table with a column event_timestamp.
            since: files that hold nothing from then on are not looked at; None looks at all.
        """
        from pyiceberg.conversions import from_bytes

        found = self._found(table)
        if found is None:
            return None
        column = found.schema().find_field(EVENT_TIMESTAMP)
        kind: Any = column.field_type
        with self.answering():
            files = [task.file for task in scan(found, since).plan_files()]
        bounds = [file.upper_bounds[column.field_id] for file in files if column.field_id in (file.upper_bounds or {})]
        times = [int(from_bytes(kind, bound)) for bound in bounds]
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=max(times)) if times else None

    def exists(self, table: str) -> bool:
        """Whether the table is there."""
        return self._found(table) is not None

    def columns(self, table: str) -> set[str]:
        """Names of the table's columns; none if there is no such table."""
        found = self._found(table)
        return set(found.schema().column_names) if found else set()

    def first_offsets(self, table: str) -> dict[int, int]:
        """An offset by Kafka partition before which the table holds nothing, from the statistics of its files."""
        target = self.existing(table)
        with self.answering():
            return first_offsets(target)

    def tables(self) -> list[str]:
        """Names of the tables, sorted."""
        with self.answering():
            return sorted(name for *_, name in self.catalog.list_tables(self.namespace))

    def existing(self, table: str) -> Table:
        """The table as pyiceberg knows it.

        Raises:
            StateError: there is none.
        """
        found = self._found(table)
        if found is None:
            raise StateError(
                f"the lake has no table {self.namespace}.{table} yet; run `perennial ingest {self.namespace}` first"
            )
        return found

    def _found(self, table: str) -> Table | None:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            with self.answering():
                return self.catalog.load_table(f"{self.namespace}.{table}")
        except NoSuchTableError:
            return None

    def _table(self, table: str, schema: pa.Schema, partition_by: str | None) -> Table:
        """The table, made or given columns where it lacks them."""
        target = self._found(table)
        if target is None:
            return self._create(table, schema, partition_by)
        known = set(target.schema().column_names)
        if not set(schema.names) <= known:
            with target.update_schema() as update:
                update.union_by_name(schema)
        return target

    def _create(self, table: str, schema: pa.Schema, partition_by: str | None) -> Table:
        from pyiceberg.exceptions import TableAlreadyExistsError
        from pyiceberg.transforms import DayTransform

        try:
            # Schema and partitions in one commit: a crash between two would leave a table without partitions for good.
            with self.catalog.create_table_transaction(
                f"{self.namespace}.{table}", schema=schema, properties=TABLE_PROPERTIES
            ) as create:
                if partition_by:
                    with create.update_spec() as spec:
                        spec.add_field(partition_by, DayTransform(), f"{partition_by}_day")
        except TableAlreadyExistsError:
            pass
        return self.existing(table)


def check_fits(table: Table, schema: pa.Schema) -> None:
    """Raise StateError where a column's type is not the table's; pyiceberg would print a table and raise ValueError."""
    from pyiceberg.exceptions import ResolveError
    from pyiceberg.io.pyarrow import pyarrow_to_schema
    from pyiceberg.schema import promote

    for given in pyarrow_to_schema(schema, name_mapping=table.schema().name_mapping).fields:
        expected = table.schema().find_field(given.name).field_type
        if given.field_type == expected:
            continue
        try:
            promote(given.field_type, expected)
        except ResolveError as error:
            raise StateError(
                f"column {given.name!r} of {'.'.join(table.name())} is {expected} in the lake but {given.field_type} in the "
                "new rows; give the new one another name, or start with a new PERENNIAL_HOME"
            ) from error


def rows_of(
    table: Table, since: datetime | None = None, until: datetime | None = None, snapshot_id: int | None = None
) -> pl.LazyFrame:
    """Rows of [since, until) by event time.

    Read by Polars: with files of a thousand rows, pyiceberg (0.12) takes three times as long.
    """
    # pyiceberg takes S3's options under either name, the second before the first; Polars knows the second.
    given = table.io.properties
    options = {"s3." + n.removeprefix(p): given[n] for p in ("client.", "s3.") for n in given if n.startswith(p)}
    # What Polars does not know, such as a role to take, it would leave out.
    reader: Literal["pyiceberg"] | None = None if options.keys() <= POLARS_KNOWS else "pyiceberg"
    rows = pl.scan_iceberg(table, snapshot_id=snapshot_id, storage_options=options or None, reader_override=reader)
    at = pl.col(EVENT_TIMESTAMP)
    rows = rows.filter(at >= since) if since else rows
    return rows.filter(at < until) if until else rows


def check_still(target: Table, still: Mapping[str, str | None]) -> None:
    """Raise ConflictError if the table no longer tells what it must (None: if it tells what it must not)."""
    now = told(target) if still else {}
    moved = {name: now.get(name) for name, value in still.items() if now.get(name) != value}
    if moved:
        raise ConflictError(
            f"another writer replaced the rows of {'.'.join(target.name())} since they were read; these were not kept",
            ", run it again",
        )


def scan(
    table: Table,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: tuple[str, ...] = ("*",),
    snapshot_id: int | None = None,
) -> Any:
    """A scan of [since, until) by event time, whose partitions outside are not opened."""
    return table.scan(row_filter=_within(since, until) or "true", selected_fields=columns, snapshot_id=snapshot_id)


def _within(since: datetime | None, until: datetime | None) -> str:
    wanted = [f"{EVENT_TIMESTAMP} >= '{since.isoformat()}'"] if since else []
    wanted += [f"{EVENT_TIMESTAMP} < '{until.isoformat()}'"] if until else []
    return " and ".join(wanted)


def first_of_each(events: pl.DataFrame, key: str) -> pl.DataFrame:
    """Events once each, by key and time: the one that was taken in first, whatever the order of the lake's files.

    What ingest marked as a duplicate is left out. Events without a key are not one another's duplicates.
    """
    taken_in = [CREATED_TIMESTAMP, PARTITION, OFFSET]
    return without_duplicates(events).sort(taken_in).filter(first_distinct(key))


def first_distinct(key: str) -> pl.Expr:
    """Whether a row is the first of its key and event time; every row without a key is."""
    return pl.col(key).is_null() | pl.struct(key, EVENT_TIMESTAMP).is_first_distinct()


def without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """Events that ingest did not mark as duplicates. Tables of older versions have no such mark; null is none, too."""
    if IS_DUPLICATE not in events.columns:
        return events
    return events.filter(~pl.col(IS_DUPLICATE).fill_null(value=False))


def positions_of(table: Table) -> dict[int, int]:
    """Positions as of the newest snapshot that tells them: other Iceberg clients commit, too, and know nothing of Kafka.

    Raises:
        StateError: there are snapshots, but none that is kept tells positions.
    """
    positions = told(table).get(OFFSETS)
    if positions is not None:
        return {int(partition): int(offset) for partition, offset in json.loads(positions).items()}
    if table.current_snapshot() is not None:
        raise StateError(
            f"no snapshot of {'.'.join(table.name())} that is kept tells its Kafka positions ({OFFSETS}): another program "
            "rewrote it; roll it back to a snapshot of perennial's, or start with a new PERENNIAL_HOME"
        )
    return {}
