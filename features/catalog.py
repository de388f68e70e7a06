"""Which Iceberg catalog keeps the lake's tables and which files they are in, from the settings.

SQL (SQLite or PostgreSQL) or AWS Glue; local files or S3. Credentials go from the settings to the libraries and into no
message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import polars as pl

from perennial.database_urls import shown as shown_database
from perennial.errors import BlockedError, PerennialError, StateError, UnreachableError, UsageError
from perennial.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.engine import URL

CATALOG_SETTING, WAREHOUSE_SETTING = "PERENNIAL_LAKE_CATALOG_URI", "PERENNIAL_LAKE_WAREHOUSE"
SCHEMES = ("sqlite", "postgresql", "postgres", "postgresql+psycopg", "glue")
CONNECT_S, READ_S = 5, 30
# botocore would send a commit again whose answer was lost, Glue would refuse it as overtaken, and pyiceberg would then
# delete manifests of a snapshot that is in the table. A run that met an error is run again by its schedule.
GLUE_TRIES = 1
FILES = {
    # Arrow's own file systems; without this pyiceberg would take s3fs where that happens to be installed.
    "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"
}


def catalog_of(settings: Settings) -> Catalog:
    """The catalog that the settings name; opened once a process.

    Raises:
        UsageError: the address is none, or of no kind known here.
        StateError: the catalog cannot be used as it is.
        UnreachableError: it does not answer.
    """
    options = {name: _as_text(value) for name, value in settings.lake_options.items()}
    return _open(settings.catalog_uri, settings.warehouse, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=8)
def _open(uri: str, warehouse: str, options: str) -> Catalog:
    scheme, is_address, _ = uri.partition("://")
    if scheme not in SCHEMES:
        given = f"{scheme}://..." if is_address else "no address"
        raise UsageError(
            f"{CATALOG_SETTING} is {given}; it must be sqlite:///FILE, postgresql://USER@HOST/DATABASE or glue://REGION"
        )
    properties = _properties(warehouse, json.loads(options))
    if not remote(warehouse):
        Path(properties["warehouse"]).mkdir(parents=True, exist_ok=True)
    with answering(uri, warehouse):
        return _open_glue(uri, properties) if scheme == "glue" else _open_sql(uri, properties)


def _properties(warehouse: str, options: dict[str, str]) -> dict[str, Any]:
    """What pyiceberg is told of the files."""
    # It takes a file URI's percent signs for parts of the name, so local files go by their plain path.
    location = unquote(urlparse(warehouse).path) if warehouse.startswith("file:") else warehouse
    properties = {**FILES, "warehouse": location, **options}
    if "s3.endpoint" in properties and not properties.keys() & {"s3.region", "client.region"}:
        # Else pyiceberg asks Amazon for the region of a bucket that is not Amazon's.
        properties["s3.region"] = "us-east-1"
    return properties


def try_files(settings: Settings, name: str) -> None:
    """Write, read and delete a file of the lake's warehouse, the way in which tables do.

    In an S3 warehouse that was empty, Arrow leaves the folder's own mark, an object without bytes.

    Args:
        settings: where the files are.
        name: of the file, which nothing else may have.

    Raises:
        UnreachableError: the store does not answer, or refuses; the cause is its own.
        OSError: a local folder cannot be used.
    """
    from pyiceberg.io import load_file_io

    options = {option: _as_text(value) for option, value in settings.lake_options.items()}
    waiting = {"s3.connect-timeout": "2", "s3.request-timeout": "2"}
    properties = _properties(settings.warehouse, {**waiting, **options})
    address = f"{properties['warehouse'].rstrip('/')}/{name}"
    with answering(settings.catalog_uri, settings.warehouse):
        files = load_file_io(properties, address)
        try:
            with files.new_output(address).create(overwrite=True) as file:
                file.write(name.encode())
            with files.new_input(address).open() as file:
                told = file.read()
        except BaseException:
            with suppress(OSError):
                files.delete(address)
            raise
        files.delete(address)  # who may not delete cannot keep a lake either
    if told != name.encode():
        raise StateError(
            f"the lake's files at {settings.warehouse} give back something else than was written; mend them"
        )


def _open_glue(uri: str, properties: dict[str, Any]) -> Catalog:
    from botocore.config import Config
    from botocore.session import get_session
    from pyiceberg.catalog.glue import GlueCatalog

    region = urlparse(uri).netloc
    session = get_session()
    session.set_default_client_config(Config(connect_timeout=CONNECT_S, read_timeout=READ_S))
    own = {"glue.max-retries": GLUE_TRIES, "botocore_session": session, **({"glue.region": region} if region else {})}
    return GlueCatalog("perennial", **{**properties, **own})


def _open_sql(uri: str, properties: dict[str, Any]) -> Catalog:
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    url = _address(uri)
    # Of two processes that open a new catalog at once, one finds the tables made between its look and its making.
    overtaken: tuple[type[Exception], ...] = (IntegrityError, ProgrammingError)
    if url.drivername == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        overtaken += (OperationalError,)
    else:
        properties = {"pool_pre_ping": "true", **properties}
    address = url.render_as_string(hide_password=False)
    with suppress(*overtaken):
        return _write_ahead(SqlCatalog("perennial", uri=address, **properties))
    return _write_ahead(SqlCatalog("perennial", uri=address, **properties))


def _address(uri: str) -> URL:
    """Of a catalog in SQL, with the driver that is here."""
    url = _parsed(uri)
    if url.drivername == "sqlite":
        return url
    url = url.set(drivername="postgresql+psycopg")
    return url if "connect_timeout" in url.query else url.update_query_dict({"connect_timeout": str(CONNECT_S)})


def is_made(settings: Settings) -> bool:
    """Whether a catalog in SQL has its tables, which opening it would make; of any other nothing is to be made.

    Raises:
        UsageError: its address is none.
        UnreachableError: it does not answer.
        StateError: it cannot be used as it is.
    """
    uri = settings.catalog_uri
    if uri.startswith("sqlite:"):
        return Path(uri.removeprefix("sqlite:///")).exists()
    if not uri.startswith("postgres"):
        return True
    import sqlalchemy as sa
    from pyiceberg.catalog.sql import IcebergTables

    engine = sa.create_engine(_address(uri))
    try:
        with answering(uri, settings.warehouse):
            return sa.inspect(engine).has_table(IcebergTables.__tablename__)
    finally:
        engine.dispose()


def has_namespace(settings: Settings, name: str) -> bool:
    """Whether the catalog knows the namespace (a database of Glue) of a pipeline; no other is looked at.

    Raises:
        UsageError: the catalog's address is none.
        UnreachableError: it does not answer, or refuses.
        StateError: it cannot be used as it is.
    """
    from pyiceberg.exceptions import NoSuchNamespaceError

    catalog = catalog_of(settings)
    with answering(settings.catalog_uri, settings.warehouse):
        try:
            catalog.load_namespace_properties(name)
        except NoSuchNamespaceError:
            return False
    return True


def _write_ahead(catalog: SqlCatalog) -> SqlCatalog:
    """Let SQLite write ahead and not wait for the disk: half of a small commit's time.

    Killed, the process loses nothing. A machine that loses power may forget the last commits, and with them their Kafka
    positions; the files of those commits were not waited for either, so a catalog that had been would name lost files.
    """
    import sqlite3

    from sqlalchemy import event

    def begin(connection: Any, _: Any) -> None:
        with suppress(sqlite3.Error):  # somebody holds the database just now; it works as it is, only slower
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

    if catalog.engine.dialect.name == "sqlite":
        event.listen(catalog.engine, "connect", begin)
        catalog.engine.dispose()
    return catalog


@contextmanager
def answering(uri: str, warehouse: str) -> Iterator[None]:
    """Tell in a sentence what a catalog or its files refuse. Errors of local files pass: their sentence has the path.

    Args:
        uri: of the catalog.
        warehouse: URI of the files.

    Raises:
        UnreachableError: the catalog or S3 does not answer.
        BlockedError: a local catalog is locked, or its disk full.
        StateError: a local catalog cannot be used as it is, or a data file cannot be read.
    """
    try:
        yield
    except _failures(uri) as error:
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise _kind_of(error, uri)(
            f"the lake's catalog {shown(uri)} does not answer ({cause}); mend it or see {CATALOG_SETTING}",
            ", then run again",
        ) from error
    except (pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
        raise StateError(
            f"a file of the lake at {warehouse} cannot be read ({str(error).strip().partition(chr(10))[0]}); restore it, or "
            "roll the table back to a snapshot without it"
        ) from error
    except OSError as error:
        if not remote(warehouse):
            raise
        raise UnreachableError(
            f"the lake's files at {warehouse} cannot be reached ({error}); mend it or see {WAREHOUSE_SETTING} and "
            "PERENNIAL_LAKE_OPTIONS",
            ", then run again",
        ) from error


def _kind_of(error: Exception, uri: str) -> type[PerennialError]:
    from sqlalchemy.exc import OperationalError

    if not uri.startswith("sqlite:"):
        return UnreachableError
    return BlockedError if isinstance(error, OperationalError) else StateError


def remote(warehouse: str) -> bool:
    """Whether the files are elsewhere, such as in S3."""
    return "://" in warehouse and not warehouse.startswith("file:")


def _failures(uri: str) -> tuple[type[Exception], ...]:
    if uri.startswith("glue:"):
        from botocore.exceptions import BotoCoreError, ClientError

        return (BotoCoreError, ClientError)
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def shown(uri: str) -> str:
    """The address without its password.

    Raises:
        UsageError: it is no address of a database.
    """
    return uri if uri.startswith("glue:") else shown_database(_parsed(uri))


def _parsed(uri: str) -> URL:
    """An address of a database, in its parts.

    Raises:
        UsageError: it is none, or its password has an @ as it is, so that a piece of it would be the host or the user.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with suppress(ArgumentError, ValueError):
        url = make_url(uri)
        if "@" not in (url.host or "") and "password=" not in f"{url.username}{url.password}":
            return url
    # Neither the address nor what SQLAlchemy says of it: both may hold a piece of the password.
    raise UsageError(
        f"{CATALOG_SETTING} is no address of a database; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
        "with %-codes for special characters such as @, : and / in the password"
    )


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
