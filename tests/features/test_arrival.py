from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import arrival
from features.arrival import Arrivals, Counts, SeenIds, lateness
from pipelines.spec import EventField, EventSpec

T0 = datetime(2026, 1, 1, tzinfo=UTC)
EVENT = EventSpec(
    topic="toys.sold.v1",
    fields=(
        EventField(name="sale", type="string"),
        EventField(name="line", type="int"),
        EventField(name="event_timestamp", type="timestamp"),
    ),
    event_timestamp="event_timestamp",
    event_id=("sale", "line"),
    partition_key="sale",
    dedup_s=60,
    lateness_s=100,
)


def events(*rows: tuple[str, float]) -> pl.DataFrame:
    """(sale, seconds after T0); all are line 1."""
    return pl.DataFrame(
        {
            "sale": [sale for sale, _ in rows],
            "line": 1,
            "event_timestamp": [T0 + timedelta(seconds=s) for _, s in rows],
        },
        schema=EVENT.schema_,
    )


def seconds(watermarks: dict[int, datetime]) -> dict[int, float]:
    return {partition: (at - T0).total_seconds() for partition, at in watermarks.items()}


def test_an_event_is_as_late_as_the_newest_one_before_it_in_its_partition_is_ahead() -> None:
    batch = events(("a", 10), ("b", 3), ("c", 12), ("d", 12), ("e", 11.5), ("f", 1)).with_columns(
        kafka_partition=pl.Series([0, 0, 0, 0, 0, 7], dtype=pl.Int32)
    )
    late, watermarks = lateness(batch, {})
    assert late.to_list() == [0, 7, 0, 0, 0.5, 0]
    assert seconds(watermarks) == {0: 12, 7: 1}


def test_what_came_in_an_earlier_batch_counts_and_no_watermark_goes_back() -> None:
    batch = events(("a", 5), ("b", 30)).with_columns(kafka_partition=pl.Series([0, 1], dtype=pl.Int32))
    known = {p: T0 + timedelta(seconds=s) for p, s in ((0, 20), (1, 20), (2, 50))}
    late, watermarks = lateness(batch, known)
    assert late.to_list() == [15, 0]
    assert seconds(watermarks) == {0: 20, 1: 30, 2: 50}
    nothing, same = lateness(batch.clear(), known)
    assert nothing.len() == 0
    assert same == known


class Log:
    """The events of a lake, and which stretches of it were read."""

    def __init__(self, held: pl.DataFrame) -> None:
        self.held = held
        self.read: list[tuple[float, float]] = []

    @property
    def newest(self) -> datetime | None:
        return self.held["event_timestamp"].max()

    def __call__(self, since: datetime, until: datetime) -> pl.DataFrame:
        self.read.append(((since - T0).total_seconds(), (until - T0).total_seconds()))
        return self.held.filter(pl.col("event_timestamp").is_between(since, until, closed="left"))


def seen_of(log: Log) -> SeenIds:
    return SeenIds(EVENT, log, log.newest)


def test_a_copy_is_known_by_its_whole_id_and_its_time() -> None:
    seen = seen_of(Log(events()))
    batch = events(("a", 0), ("a", 60), ("b", 0), ("a", 120.5), ("a", 0))
    assert seen.mark(batch).tolist() == [False, True, False, False, True]
    other_line = events(("b", 0)).with_columns(line=pl.lit(2, pl.Int64))
    assert seen.mark(other_line).tolist() == [False]


def test_copies_of_what_the_lake_holds_are_found_by_reading_only_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(events(("old", 0), ("near", 1_000), ("far", 1_000)))
    seen = seen_of(log)
    assert seen.mark(events(("near", 1_060), ("far", 1_061), ("new", 1_010))).tolist() == [True, False, False]
    # Nothing that is newer than the lake's newest event is asked for.
    assert log.read == [(950, pytest.approx(1_000, abs=1e-3))]
    # Older ones come: only the stretch that was not read yet is read.
    assert seen.mark(events(("old", 30), ("near", 990))).tolist() == [True, True]
    assert log.read[1:] == [(-30, 950)]
    monkeypatch.setattr(arrival, "MOST_IDS", 0)
    seen.committed(T0 + timedelta(seconds=1_200))
    log.held = events(("old", 0), ("near", 1_000), ("far", 1_000), ("new", 1_010))
    assert seen.mark(events(("new", 1_010))).tolist() == [True]
    assert log.read[2:] == [(950, 1_040)]
    assert not seen.mark(events(("newer", 5_000))).any()
    assert log.read[3:] == [(pytest.approx(1_121, abs=1e-3), pytest.approx(1_200, abs=1e-3))]


def test_a_partition_that_lags_behind_finds_the_copies_of_what_was_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "MOST_IDS", 10)
    log = Log(events())
    seen = seen_of(log)
    taken = [(f"sale {i}", 10.0 * i) for i in range(500)]
    for row in taken:
        assert not seen.mark(events(row)).any()
        log.held = pl.concat([log.held, events(row)])
        seen.committed(T0 + timedelta(seconds=row[1]))
    assert sum(len(run.hashes) for run in seen._runs) < 60
    assert seen.mark(events(("sale 7", 70), ("sale 7", 200), ("sale 499", 4_990))).tolist() == [True, False, True]


drawn = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200)), max_size=25)


@given(drawn, st.lists(st.integers(0, 25), max_size=4), st.integers(0, 25))
def test_copies_are_the_same_however_the_log_is_cut_and_wherever_a_new_reader_begins(
    log: list[tuple[str, int]], cuts: list[int], restart: int
) -> None:
    by_hand = [any(a == b and abs(s - t) <= 60 for b, t in log[:i]) for i, (a, s) in enumerate(log)]
    edges = [0, *sorted(min(c, len(log)) for c in (*cuts, restart)), len(log)]
    seen, found = seen_of(Log(events())), []
    for start, end in itertools.pairwise(edges):
        if start == restart:  # killed: what came before is in the lake
            seen = seen_of(Log(events(*log[:start])))
        found += seen.mark(events(*log[start:end])).tolist()
    assert found == by_hand


def test_one_id_a_hundred_thousand_times_is_no_trap() -> None:
    same = events(*(("a", i * 61) for i in range(100_000)))
    seen = seen_of(Log(events()))
    assert not seen.mark(same).any()
    assert seen.mark(same).all()


def test_what_a_commit_says_of_arrivals_is_read_back() -> None:
    told = Arrivals({0: T0, 12: T0 + timedelta(microseconds=7)}, Counts(5, 4, 3, 2, 1))
    assert Arrivals.from_json(told.to_json()) == told
    assert Arrivals.from_json(None) == Arrivals()


def test_counts_say_how_many_were_late_too_late_or_copies() -> None:
    marked = events(("a", 0), ("b", 0), ("c", 0), ("d", 0)).with_columns(
        late_s=pl.Series([0.0, 0.5, 100.0, 100.5]),
        too_late=pl.Series([False, False, False, True]),
        is_duplicate=pl.Series([False, True, False, False]),
    )
    found = Counts.of(marked, 9)
    assert found == Counts(ingested=4, dead_lettered=9, late=2, too_late=1, duplicates=1)
    assert found + found - found == found
