"""The lake on every catalog and file system it is meant for: real SQLite and PostgreSQL, moto's S3 and Glue."""

from __future__ import annotations

import time
import traceback
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pytest
from aws_account import moto_server as moto_server
from moto.core.exceptions import JsonRESTError
from moto.glue.responses import GlueResponse
from postgres import postgres as postgres  # a fixture

from features.catalog import shown
from features.compaction import compact
from features.lake import Lake
from features.maintenance import expire, history
from perennial.errors import ConflictError, PerennialError, UnreachableError, UsageError
from perennial.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "kept-out-of-messages"
SOON = timedelta(seconds=30)


def options(address: str) -> dict[str, Any]:
    return {
        "s3.endpoint": address,
        "glue.endpoint": address,
        "client.access-key-id": "key",
        "client.secret-access-key": SECRET,
    }


def new_bucket(address: str) -> str:
    name = f"lake-{uuid.uuid4().hex[:8]}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET
    )
    client.create_bucket(Bucket=name)
    return name


KINDS = ("sqlite+files", "sqlite+s3", "postgresql+s3", "glue+s3")


@pytest.fixture(params=KINDS)
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    catalog, files = request.param.split("+")
    given: dict[str, Any] = {}
    if files == "s3":
        address = request.getfixturevalue("moto_server")
        given = {"lake_warehouse": f"s3://{new_bucket(address)}/a folder/lake", "lake_options": options(address)}
    if catalog == "postgresql":
        # As people write it: without the driver's name.
        given["lake_catalog_uri"] = request.getfixturevalue("postgres").replace("+psycopg", "")
    if catalog == "glue":
        given["lake_catalog_uri"] = "glue://eu-central-1"
    # A namespace of its own: one PostgreSQL and one Glue serve all tests.
    return Lake(Settings(home=tmp_path / "home", **given), f"toys_{uuid.uuid4().hex[:8]}")


def sold(*ids: int) -> pl.DataFrame:
    """One sale an hour, in two Kafka partitions in turn."""
    return pl.DataFrame(
        {
            "sale": list(ids),
            "event_timestamp": [T0 + timedelta(hours=i) for i in ids],
            "kafka_partition": [i % 2 for i in ids],
            "kafka_offset": [i // 2 for i in ids],
        },
        schema={
            "sale": pl.Int64,
            "event_timestamp": pl.Datetime("us", "UTC"),
            "kafka_partition": pl.Int32,
            "kafka_offset": pl.Int64,
        },
    )


def ids(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["sale"].to_list())


def test_rows_and_positions_are_kept_together(lake: Lake) -> None:
    first = lake.append("sold", sold(0, 1, 2), {0: 2, 1: 1}, read_from={})
    lake.append("sold", sold(3, 4), {0: 3, 1: 2}, read_from={0: 2, 1: 1})
    again = Lake(lake.settings, lake.namespace)
    assert again.offsets("sold") == {0: 3, 1: 2}
    assert ids(again.read("sold")) == [0, 1, 2, 3, 4]
    assert ids(again.read("sold", snapshot_id=first.snapshot_id)) == [0, 1, 2]
    assert ids(again.read_places("sold", {0: 1}, {0: 3, 1: 1})) == [1, 2, 4]
    assert again.tables() == ["sold"]


class Overtaken(Lake):
    """A lake in which another writer commits once, after this one has read the table and before it writes."""

    others = 1

    def _table(self, *arguments: Any) -> Any:
        table = super()._table(*arguments)
        if self.others:
            self.others -= 1
            Lake(self.settings, self.namespace).append("sold", sold(100), {0: 51})
        return table


def test_a_second_writer_is_refused_and_goes_on_from_the_new_position(lake: Lake) -> None:
    lake.append("sold", sold(0), {0: 1})
    with pytest.raises(ConflictError, match="another writer"):
        Overtaken(lake.settings, lake.namespace).append("sold", sold(2, 4), {0: 3}, read_from={0: 1})
    assert lake.offsets("sold") == {0: 51}
    assert ids(lake.read("sold")) == [0, 100]
    lake.append("sold", sold(102), {0: 52}, read_from={0: 51})
    assert ids(lake.read("sold")) == [0, 100, 102]


def test_a_pinned_snapshot_outlives_compaction_and_expiry_and_unneeded_files_do_not(lake: Lake) -> None:
    for number in range(6):
        commit = lake.append("sold", sold(number), {0: number + 1})
        if number == 2:
            lake.pin("sold", commit.snapshot_id, "training")
            pinned = commit.snapshot_id
    before = lake.read("sold").sort("sale")
    assert compact(lake, "sold").files_after == 1
    assert lake.read("sold").sort("sale").equals(before)
    assert lake.offsets("sold") == {0: 6}
    done = expire(lake, "sold", keep=1, older_than=timedelta(0), now=datetime.now(UTC) + SOON)
    # The compacted table and the pin; of the six files one each of the last three sales is needed by neither.
    assert (done.snapshots_gone, done.snapshots_kept) == (5, 2)
    assert [line.names for line in history(lake, "sold")] == [(), ("training",)]
    names = [path.rpartition("/")[2] for path in files(lake)]
    assert len([name for name in names if name.endswith(".parquet")]) == 1 + 3
    assert lake.read("sold").sort("sale").equals(before)
    assert ids(lake.read("sold", snapshot_id=pinned)) == [0, 1, 2]
    lake.append("sold", sold(6), {0: 7}, read_from={0: 6})
    assert ids(lake.read("sold")) == list(range(7))


def files(lake: Lake) -> list[str]:
    from pyarrow.fs import FileSelector, FileSystem, FileType, S3FileSystem

    if lake.warehouse.startswith("s3:"):
        address = lake.settings.lake_options["s3.endpoint"]
        system: FileSystem = S3FileSystem(
            endpoint_override=address, access_key="key", secret_key=SECRET, region="us-east-1"
        )
        root = lake.warehouse.removeprefix("s3://")
    else:
        system, root = FileSystem.from_uri(lake.warehouse)
    return [f.path for f in system.get_file_info(FileSelector(root, recursive=True)) if f.type == FileType.File]


def test_a_commit_between_glues_look_and_its_write_is_refused_by_the_version_it_names(
    moto_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto (5.2) takes UpdateTable's VersionId and does not look at it. Glue refuses one that is not the newest.

    https://docs.aws.amazon.com/glue/latest/webapi/API_UpdateTable.html (ConcurrentModificationException)
    """
    taken = GlueResponse.update_table

    def as_glue_does(self: GlueResponse) -> Any:
        table = self.glue_backend.get_table(
            self.parameters.get("DatabaseName"), self.parameters.get("TableInput").get("Name")
        )
        if self.parameters.get("VersionId") != table.as_dict()["VersionId"]:
            raise JsonRESTError(
                "ConcurrentModificationException", "Update table failed due to concurrent modifications"
            )
        return taken(self)

    monkeypatch.setattr(GlueResponse, "update_table", as_glue_does)
    settings = Settings(
        home=tmp_path,
        lake_catalog_uri="glue://eu-central-1",
        lake_warehouse=f"s3://{new_bucket(moto_server)}",
        lake_options=options(moto_server),
    )
    lake = Lake(settings, f"toys_{uuid.uuid4().hex[:8]}")
    lake.append("sold", sold(0), {0: 1})
    # pyiceberg looks at Glue's table, checks what it requires, writes the metadata file, then updates Glue's table.
    kind, overtaken = type(lake.catalog), []
    write = kind._write_metadata

    def after_another(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        if not overtaken:
            overtaken.append(True)
            Lake(settings, lake.namespace).append("sold", sold(100), {0: 51})

    monkeypatch.setattr(kind, "_write_metadata", staticmethod(after_another))
    with pytest.raises(ConflictError, match="another writer"):
        lake.append("sold", sold(2), {0: 2}, read_from={0: 1})
    assert overtaken
    assert ids(lake.read("sold")) == [0, 100]
    assert lake.offsets("sold") == {0: 51}


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"lake_catalog_uri": "postgresql://me:{secret}@127.0.0.1:{port}/lake"}, "PERENNIAL_LAKE_CATALOG_URI"),
        (
            {"lake_catalog_uri": "postgresql+psycopg://127.0.0.1:{port}/lake?user=me&password={secret}"},
            "PERENNIAL_LAKE_CATALOG_URI",
        ),
        ({"lake_catalog_uri": "glue://eu-central-1", "lake_warehouse": "s3://b"}, "PERENNIAL_LAKE_CATALOG_URI"),
        ({"lake_warehouse": "s3://bucket/lake"}, "PERENNIAL_LAKE_WAREHOUSE"),
    ],
    ids=["postgresql", "postgresql's options", "glue", "s3"],
)
def test_what_does_not_answer_is_told_soon_and_in_one_sentence(
    given: dict[str, str], setting: str, free_port: int, tmp_path: Path
) -> None:
    addresses = {name: value.format(secret=SECRET, port=free_port) for name, value in given.items()}
    settings = Settings(home=tmp_path, lake_options=options(f"http://127.0.0.1:{free_port}"), **addresses)
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=setting) as caught:
        Lake(settings, "toys").append("sold", sold(0), {0: 1})
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 20


def test_a_bucket_that_is_not_there_is_told_in_one_sentence(moto_server: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, lake_warehouse="s3://nobody-made-this/lake", lake_options=options(moto_server))
    with pytest.raises(UnreachableError, match=r"nobody-made-this.*PERENNIAL_LAKE_WAREHOUSE") as caught:
        Lake(settings, "toys").append("sold", sold(0), {0: 1})
    assert SECRET not in str(caught.value)


def test_files_that_went_away_since_are_told_in_one_sentence(moto_server: str, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, lake_warehouse=f"s3://{new_bucket(moto_server)}", lake_options=options(moto_server)
    )
    lake = Lake(settings, "toys")
    lake.append("sold", sold(0), {0: 1})
    client = boto3.client(
        "s3", endpoint_url=moto_server, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET
    )
    for path in files(lake):
        bucket, _, key = path.partition("/")
        if key.endswith(".parquet"):
            client.delete_object(Bucket=bucket, Key=key)
    for read in (lambda: lake.read("sold"), lambda: lake.read_places("sold", {}, {0: 9})):
        with pytest.raises(PerennialError, match="PERENNIAL_LAKE_WAREHOUSE"):
            read()


@pytest.mark.parametrize("uri", [f"mysql://me:{SECRET}@db/lake", f"{SECRET}", "thrift://hive:9083"])
def test_a_catalog_of_an_unknown_kind_is_told_with_the_kinds_there_are(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PERENNIAL_LAKE_CATALOG_URI.*sqlite.*postgresql.*glue") as caught:
        Lake(Settings(home=tmp_path, lake_catalog_uri=uri), "toys").append("sold", sold(0))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:s3cr@t:zebra@localhost/db",
        "postgresql://u:s3cr@t:zebra@localhost:5432/db",
        "postgresql://u:s3cr@t:zebra",
        "postgresql://u:s3cr",
        "postgresql://u:s3cr@zebra@localhost/db",
        "postgresql://localhost?user=u&password=s3cr@zebra",
        "postgresql://localhost:5432?user=u&password=s3cr@zebra",
    ],
)
def test_an_address_that_cannot_be_read_is_told_without_a_piece_of_its_password(uri: str, tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path, lake_catalog_uri=uri), "toys")
    for use in (lake.tables, lambda: shown(uri)):
        with pytest.raises(UsageError, match=r"PERENNIAL_LAKE_CATALOG_URI.*%-codes") as caught:
            use()
        # All that a traceback would show.
        told = "".join(traceback.format_exception(caught.value, limit=0))
        assert "s3cr" not in told
        assert "zebra" not in told


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://u:s3cr@db:5432/lake", "postgresql://u:***@db:5432/lake"),
        ("postgresql://db/lake?user=u&password=s3cr", "postgresql://db/lake?password=***&user=u"),
        (
            "postgresql://db/lake?sslpassword=s3cr&sslmode=require",
            "postgresql://db/lake?sslmode=require&sslpassword=***",
        ),
        ("postgresql://u:s3cr@/lake?password=s3cr&password=s3cr", "postgresql://u:***@/lake?password=***"),
        ("postgresql+psycopg://db/lake?password=s3cr@zebra", "postgresql+psycopg://db/lake?password=***"),
    ],
)
def test_an_address_is_shown_without_its_passwords_wherever_they_are(uri: str, told: str) -> None:
    assert shown(uri) == told


def test_options_may_be_numbers_and_truths_as_in_json(tmp_path: Path, moto_server: str) -> None:
    given = {
        **options(moto_server),
        "s3.connect-timeout": 5,
        "s3.force-virtual-addressing": False,
        "glue.max-retries": 2,
    }
    settings = Settings(
        home=tmp_path,
        lake_catalog_uri="glue://eu-central-1",
        lake_warehouse=f"s3://{new_bucket(moto_server)}",
        lake_options=given,
    )
    assert Lake(settings, f"toys_{uuid.uuid4().hex[:8]}").append("sold", sold(0), {0: 1}).rows == 1
