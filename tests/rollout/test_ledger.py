from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from perennial.errors import ConflictError, StateError, UnreachableError, UsageError
from rollout.ledger import Entry, Ledger, Model
from rollout.observation import ArmObservation, ObservationRow, failed, scored

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def entry(pipeline: str, sequence: int, **changes: object) -> Entry:
    plain = Entry(pipeline, sequence, NOW, "start", Model("1", "file:///a"), Model("2", "file:///b"), 10.0, "new", NOW)
    return replace(plain, **changes)


def row(pipeline: str, flush: int, sequence: int = 1, version: str = "2", score: float = 0.5) -> ObservationRow:
    observed = scored(np.array([score]), 2.0, np.array([0.25]))
    return ObservationRow(pipeline, sequence, version, "replica", flush, NOW, observed)


def test_a_ledger_nobody_wrote_to_has_no_state(ledger, pipeline):
    assert ledger.state(pipeline) is None
    assert ledger.history(pipeline) == []
    assert ledger.lease_until(pipeline) is None
    assert ledger.observations(pipeline, "1", 1) == ArmObservation()


def test_what_is_appended_comes_back_as_it_was(ledger, pipeline):
    first = entry(pipeline, 1, action="promote", challenger=None, share_pct=0.0, as_of=None, reason="gäte: 0.1 > 0")
    second = entry(pipeline, 2)
    assert ledger.append(first) == first
    ledger.append(second)
    ledger.append(entry(pipeline + "x", 1))
    assert ledger.history(pipeline) == [first, second]
    assert ledger.state(pipeline) == second


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_an_entry_that_does_not_follow_is_a_conflict_and_leaves_nothing(ledger, pipeline, sequence):
    ledger.append(entry(pipeline, 1))
    with pytest.raises(ConflictError, match=f"entry {sequence} of pipeline"):
        ledger.append(entry(pipeline, sequence))
    assert len(ledger.history(pipeline)) == 1


def test_of_writers_that_race_for_a_sequence_one_wins(ledger, pipeline):
    barrier = threading.Barrier(6)
    outcomes = []

    def write(name: str) -> None:
        barrier.wait()
        try:
            ledger.append(entry(pipeline, 1, reason=name))
            outcomes.append(name)
        except ConflictError:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name in outcomes if name]
    assert len(outcomes) == 6
    assert [found.reason for found in ledger.history(pipeline)] == winners
    assert len(winners) == 1


@pytest.mark.parametrize("attempt", range(5))
def test_processes_that_open_a_new_ledger_at_once_all_get_to_write(tmp_path, attempt):
    barrier = threading.Barrier(8)

    def write(i: int) -> Entry | None:
        own = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        barrier.wait()
        own.append(entry(f"p{i}", 1))
        return own.state(f"p{i}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(8))) == [entry(f"p{i}", 1) for i in range(8)]


def test_times_are_utc_whatever_zone_they_came_in(ledger, pipeline):
    paris = timezone(timedelta(hours=1))
    ledger.append(entry(pipeline, 1, at=NOW.astimezone(paris)))
    found = ledger.state(pipeline)
    assert found is not None
    assert found.at == NOW
    assert found.at.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(ledger, pipeline):
    with pytest.raises(UsageError, match=r"2026-01-01T12:00:00\.123456 has no zone"):
        ledger.append(entry(pipeline, 1, at=NOW.replace(tzinfo=None)))
    assert ledger.state(pipeline) is None


def test_a_lease_is_the_one_renewed_last(ledger, pipeline):
    ledger.renew_lease(pipeline, NOW)
    ledger.renew_lease(pipeline, NOW + timedelta(seconds=20))
    assert ledger.lease_until(pipeline) == NOW + timedelta(seconds=20)


def test_observations_add_up_over_the_flushes_of_an_entry(ledger, pipeline):
    ledger.add_observations([row(pipeline, 1, score=0.5), row(pipeline, 1, version="1")])
    ledger.add_observations([row(pipeline, 2, score=0.75), row(pipeline, 2, sequence=2)])
    both = ledger.observations(pipeline, "2", 1)
    assert both == row(pipeline, 1, score=0.5).observed + row(pipeline, 2, score=0.75).observed
    assert (both.requests, both.calls, both.mean_disagreement) == (2, 2, 0.375)
    assert ledger.observations(pipeline, "2", 2).requests == 1


def test_a_replica_whose_clock_is_wrong_counts_all_the_same(ledger, pipeline):
    ledger.add_observations([replace(row(pipeline, 1), at=NOW - timedelta(days=1))])
    assert ledger.observations(pipeline, "2", 1).requests == 1


def test_failed_calls_are_kept(ledger, pipeline):
    ledger.add_observations([replace(row(pipeline, 1), observed=failed(20))])
    assert ledger.observations(pipeline, "2", 1) == failed(20)


def test_a_ledger_from_before_failed_calls_were_counted_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger(url).add_observations([row("flights", 1)])
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("ALTER TABLE serving_observations DROP COLUMN failed_calls")
    again = Ledger(url)
    again.add_observations([row("flights", 2)])
    assert again.observations("flights", "2", 1) == row("flights", 1).observed + row("flights", 2).observed


def test_a_flush_that_is_sent_twice_counts_once(ledger, pipeline):
    rows = [row(pipeline, 1), row(pipeline, 1, version="1")]
    ledger.add_observations(rows)
    ledger.add_observations(rows)
    assert ledger.observations(pipeline, "2", 1).requests == 1


def test_another_process_sees_what_was_written(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger(url).append(entry("flights", 1))
    assert Ledger(url).state("flights") == entry("flights", 1)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StateError, match=r"ledger\.db is no ledger .*PERENNIAL_DATABASE_URL"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").state("flights")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match=r"does not answer .*PERENNIAL_DATABASE_URL"):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}").state("flights")


@pytest.mark.parametrize("address", ["me:secret@127.0.0.1:1/ledger", "127.0.0.1:1/ledger?user=me&password=secret"])
def test_a_database_that_is_down_is_told_without_its_password(address):
    pytest.importorskip("psycopg")
    down = Ledger(f"postgresql+psycopg://{address}")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/ledger\S* does not answer") as error:
        down.state("flights")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["nonsense", "oracle9i://x"])
def test_an_address_that_is_none_is_told(url):
    with pytest.raises(UsageError, match="PERENNIAL_DATABASE_URL cannot be used"):
        Ledger(url)
