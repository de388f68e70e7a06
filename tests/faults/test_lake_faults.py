"""A lake that does not take a commit: its catalog is locked after the files are written, or the disk is full."""

from __future__ import annotations

import logging
import re
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from shop import Place, Shop, all_is_in, assert_everything_counts_once, make_follower, running, take_in, wait_until

from perennial.errors import StateError


@contextmanager
def locked_catalog(place: Place) -> Iterator[None]:
    """Somebody else writes the catalog and does not come to an end."""
    other = sqlite3.connect(place.home / "lake.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


@contextmanager
def full_disk(place: Place) -> Iterator[None]:
    """No file of this process may grow beyond 1 KiB."""
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


FAULTS = {
    "a locked catalog": (locked_catalog, "database is locked"),
    "a full disk": (full_disk, "File too large|disk I/O error|disk is full"),
}


def files(place: Place) -> int:
    return sum(1 for _ in (place.home / "lake").rglob("*.parquet"))


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_commit_that_failed_is_seen_and_the_next_run_goes_on(fault: str, place: Place, shop: Shop) -> None:
    shop.send(150)
    take_in(place)
    shop.send(150)
    breaks, cause = FAULTS[fault]
    tables = place.lake.tables()
    before = {table: (place.lake.snapshot_id(table), place.lake.rows(table)) for table in tables}
    written = files(place)
    with breaks(place), pytest.raises(StateError, match=cause):
        take_in(place)
    if fault == "a locked catalog":
        assert files(place) > written, "it failed before files were written"
    assert {table: (place.lake.snapshot_id(table), place.lake.rows(table)) for table in tables} == before
    take_in(place)
    assert_everything_counts_once(place)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_follower_goes_on_by_itself_once_the_lake_takes_commits_again(
    fault: str, place: Place, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    breaks, cause = FAULTS[fault]
    with caplog.at_level(logging.WARNING, "features.follow"), running(make_follower(place)):
        shop.send(100)
        wait_until(lambda: all_is_in(place))
        with breaks(place):
            shop.send(100)
            wait_until(
                lambda: any(re.search(cause, r.message) and "going on from" in r.message for r in caplog.records)
            )
            shop.send(20)
        wait_until(lambda: all_is_in(place))
    assert "run again" not in caplog.text
    assert_everything_counts_once(place)
