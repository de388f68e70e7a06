from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.labels import PREDICTIONS
from features.lake import APPEND_TRIES, Lake
from perennial.errors import ConflictError
from perennial.settings import Settings
from validation.contract import FAILED
from validation.quarantine import QUARANTINE, failures, keep_aside, quarantined, quarantined_keys, still_aside

NOW = datetime(2026, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


def rows(*keys: str | None, at: datetime = NOW) -> pl.DataFrame:
    times = pl.Series([at] * len(keys), dtype=pl.Datetime("us", "UTC"))
    return pl.DataFrame(
        {"entity_key": keys, "event_timestamp": times, FAILED: "price at least 0"},
        schema_overrides={"entity_key": pl.String},
    )


def kept(lake: Lake) -> list[tuple[Any, ...]]:
    return sorted(lake.read(QUARANTINE).select("entity_key", "contract").rows(), key=str)


def test_rows_are_kept_once_a_contract_with_a_key_or_without(lake: Lake) -> None:
    assert keep_aside(lake, rows("ann", None, None), "c1", NOW) == 3
    assert keep_aside(lake, rows("ann", None, None), "c1", NOW + HOUR) == 0
    assert keep_aside(lake, rows("ann", "bob"), "c1", NOW + HOUR) == 1
    assert keep_aside(lake, rows("ann"), "c2", NOW + HOUR) == 1
    assert keep_aside(lake, rows("ann", at=NOW + HOUR), "c1", NOW + HOUR) == 1
    assert kept(lake) == [("ann", "c1"), ("ann", "c1"), ("ann", "c2"), ("bob", "c1"), (None, "c1"), (None, "c1")]


def test_no_rows_make_no_table(lake: Lake) -> None:
    assert keep_aside(lake, rows(), "c1", NOW) == 0
    assert not lake.exists(QUARANTINE)
    assert quarantined(lake, None, None).is_empty()
    assert quarantined_keys(lake, "c1", None, None).is_empty()


def test_a_row_that_two_contracts_refused_is_read_as_the_newer_one_said(lake: Lake) -> None:
    keep_aside(lake, rows("ann", None, None), "c1", NOW)
    keep_aside(lake, rows("ann", None, None).with_columns(pl.lit("size unique").alias(FAILED)), "c2", NOW + HOUR)
    found = quarantined(lake, NOW - HOUR, NOW + HOUR)
    assert found[FAILED].to_list() == ["size unique"] * 3
    assert quarantined(lake, NOW + HOUR, None).is_empty()


def test_what_an_older_version_kept_says_no_contract_and_holds_for_none(lake: Lake) -> None:
    older = rows("ann", "bob").with_columns(created_timestamp="event_timestamp", score=pl.lit(0.5))
    lake.append(QUARANTINE, older, partition_by=None)
    assert quarantined_keys(lake, "c1", None, None).is_empty()
    assert quarantined(lake, None, None).height == 2
    assert keep_aside(lake, rows("ann"), "c1", NOW) == 1
    assert quarantined_keys(lake, "c1", None, None)["entity_key"].to_list() == ["ann"]
    assert sorted(quarantined(lake, None, None)["entity_key"]) == ["ann", "bob"]


def test_a_writer_that_comes_in_between_is_noticed_and_its_rows_are_not_doubled(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Lake(lake.settings, "shop")
    append, overtaken = lake.append, iter([rows("ann", "bob"), rows("cid")])

    def overtaken_append(*arguments: Any, **named: Any) -> Any:
        if (theirs := next(overtaken, None)) is not None:
            keep_aside(other, theirs, "c1", NOW)
        return append(*arguments, **named)

    monkeypatch.setattr(lake, "append", overtaken_append)
    assert keep_aside(lake, rows("ann", "cid", "dan"), "c1", NOW) == 1
    assert kept(lake) == [("ann", "c1"), ("bob", "c1"), ("cid", "c1"), ("dan", "c1")]


def test_writers_that_come_in_between_for_ever_are_told_of(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Lake(lake.settings, "shop")
    append, names = lake.append, iter(f"n{i}" for i in range(APPEND_TRIES))

    def overtaken_append(*arguments: Any, **named: Any) -> Any:
        keep_aside(other, rows(next(names)), "c1", NOW)
        return append(*arguments, **named)

    monkeypatch.setattr(lake, "append", overtaken_append)
    with pytest.raises(ConflictError):
        keep_aside(lake, rows("ann"), "c1", NOW)
    assert kept(lake) == [(f"n{i}", "c1") for i in range(APPEND_TRIES)]


def test_what_is_still_aside_is_without_those_that_another_contract_let_pass_the_newest_event_first(lake: Lake) -> None:
    assert still_aside(lake, NOW).is_empty()
    keep_aside(lake, rows("ann", None, "bob"), "c1", NOW)
    keep_aside(lake, rows("cid", at=NOW + HOUR), "c1", NOW + HOUR)
    assert still_aside(lake, NOW + HOUR)["entity_key"].to_list() == ["cid", "ann", None, "bob"]
    assert still_aside(lake, NOW)["entity_key"].to_list() == ["ann", None, "bob"]
    # A prediction of the same key at another time is of another row.
    both = pl.concat([rows("bob"), rows("ann", at=NOW + HOUR)]).drop(FAILED)
    lake.append(PREDICTIONS, both.with_columns(score=pl.lit(0.5)))
    assert still_aside(lake, NOW + HOUR)["entity_key"].to_list() == ["cid", "ann", None]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("price at least 0", [("price at least 0", "price")]),
        ("price at least 0; size unique", [("price at least 0", "price"), ("size unique", "size")]),
        # A set's values and a pattern may hold what parts the expectations.
        ("size in {a; b}; price not null", [("size in {a; b}", "size"), ("price not null", "price")]),
    ],
)
def test_what_a_row_failed_is_told_expectation_by_expectation_with_its_column(
    told: str, found: list[tuple[str, str]]
) -> None:
    assert list(failures(told, {"price", "size"})) == found
