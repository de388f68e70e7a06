"""Clocks that are wrong, records that are sent twice, events that come in any order."""

from __future__ import annotations

import json
import random
import signal
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from shop import (
    FIRST,
    LATENESS_S,
    PARTITIONS,
    Logged,
    Place,
    Shop,
    all_is_in,
    assert_everything_counts_once,
    assert_online_is,
    event_value,
    expected_features,
    follow_to_the_end,
    make_follower,
    newest_rows,
    online_rows,
    running,
    take_in,
    wait_until,
)
from watched import ingest_until, process_of

from features.consumer import Batch
from features.dead_letters import DEAD_LETTERS
from features.events import Records
from features.ingest import refresh_view
from features.topic_stream import TopicStream

NOON = FIRST + timedelta(hours=12)
MODES = {"micro-batch": take_in, "follow": follow_to_the_end}


def take_in_by(mode: str, place: Place, shop: Shop, values: dict[int, list[bytes]]) -> None:
    """Put values on partitions of the first topic, while a follower follows or before a micro-batch."""
    topic = place.spec.events[0].topic

    def put() -> None:
        for partition, some in values.items():
            shop.put(topic, some, partition)

    if mode == "micro-batch":
        put()
        take_in(place)
        return
    follows = threading.Event()
    with running(make_follower(place, lambda _: follows.set())):
        assert follows.wait(60)
        put()
        wait_until(lambda: all_is_in(place))


@pytest.mark.parametrize("mode", MODES)
def test_events_a_little_ahead_of_the_clock_are_taken_and_those_far_ahead_are_dead_letters(
    mode: str, place: Place, shop: Shop
) -> None:
    event, now = place.spec.events[0], datetime.now(UTC)
    ahead = {name: event_value(name, now + timedelta(seconds=s)) for name, s in (("near", 200), ("far", 900))}
    take_in_by(mode, place, shop, {0: list(ahead.values())})
    assert place.lake.read(event.table)["id"].to_list() == ["near"]
    letters = place.lake.read(DEAD_LETTERS)
    assert letters["value"].to_list() == [ahead["far"]]
    assert "ahead of the clock" in letters["reason"][0]
    assert "at most 300 s" in letters["reason"][0]


def test_features_are_right_and_online_though_the_clock_of_the_ingest_jumps_back(place: Place, shop: Shop) -> None:
    for hours in (0, -1, -3, 2):
        shop.send(150)
        take_in(place, NOON + timedelta(days=3, hours=hours))
    assert_everything_counts_once(place)


@pytest.mark.parametrize("mode", MODES)
def test_a_producer_whose_clock_is_an_hour_behind_is_late_and_counts(mode: str, place: Place, shop: Shop) -> None:
    right = [event_value(f"a{i}", NOON + timedelta(minutes=i), amount=10) for i in range(3)]
    behind = [event_value(f"b{i}", NOON + timedelta(minutes=i - 60), amount=40) for i in range(3)]
    take_in_by(mode, place, shop, {0: [value for both in zip(right, behind, strict=True) for value in both]})
    late = place.lake.read(place.spec.events[0].table, columns=("id", "late_s"))
    assert dict(late.rows()) == {**{f"a{i}": 0.0 for i in range(3)}, **{f"b{i}": 3_600.0 for i in range(3)}}
    take_in(place)
    view = place.spec.views[0]
    # All of b before all of a: 40, 40, 40, and then 10 after 10.
    means = newest_rows(place, view)["viewed_amount_mean_1d"].to_list()
    assert means == pytest.approx([40, 40, 40, 130 / 4, 140 / 5, 150 / 6])
    assert_everything_counts_once(place)


@pytest.mark.parametrize("mode", MODES)
def test_a_producer_that_sends_everything_twice_counts_once(mode: str, place: Place, shop: Shop) -> None:
    event = place.spec.events[0]
    values = [
        event_value(f"e{i}", FIRST + timedelta(minutes=i), f"c{i % 3}", amount=i, liked=i % 2 == 0) for i in range(40)
    ]
    take_in_by(mode, place, shop, {0: [value for value in values[:10] for _ in range(2)]})  # in the same batch
    take_in_by(mode, place, shop, {0: values[10:20]})
    take_in_by(mode, place, shop, {0: values[10:20]})  # after a restart
    take_in_by(mode, place, shop, {0: values[20:30], 1: values[20:30]})  # on another partition, too
    take_in_by(mode, place, shop, {1: values[30:]})
    take_in_by(mode, place, shop, {2: values[30:]})
    MODES[mode](place)
    rows = place.lake.read(event.table).group_by("id").agg(pl.len(), pl.col("is_duplicate").sum())
    assert sorted(rows.rows()) == sorted((f"e{i}", 2, 1) for i in range(40))
    assert_everything_counts_once(place)


@pytest.mark.parametrize("mode", MODES)
def test_events_shuffled_within_the_lateness_make_the_features_of_the_sorted_ones(
    mode: str, place: Place, shop: Shop, chance: random.Random, tmp_path: Path
) -> None:
    times = [FIRST + timedelta(seconds=chance.randrange(48 * 3_600)) for _ in range(300)]
    history = [
        (at, event_value(f"e{i}", at, f"c{i % 9}", i % 70, chance.choice((True, False, None))))
        for i, at in enumerate(sorted(times))
    ]
    shuffled = sorted(history, key=lambda event: event[0] + timedelta(seconds=chance.uniform(0, LATENESS_S)))
    assert shuffled != history
    view = place.spec.views[0]
    other = Place(tmp_path / "sorted", place.address, f"{place.name}_sorted")
    for where, events in ((place, shuffled), (other, history)):
        its = Shop(where, chance)
        # A customer's events go to one partition each, as a producer with the partition key would put them.
        parts = [[v for _, v in events if int(v.split(b'"c')[2][:1]) % PARTITIONS == p] for p in range(PARTITIONS)]
        for begin in range(0, 300, 40):
            some = {p: part[begin : begin + 40] for p, part in enumerate(parts) if part[begin : begin + 40]}
            take_in_by(mode, where, its, some) if some else None
        its.close()
        MODES[mode](where)
        assert_everything_counts_once(where)
    assert newest_rows(place, view).equals(newest_rows(other, view))
    late = place.lake.read(place.spec.events[0].table)["late_s"]
    assert late.max() > 0.3 * LATENESS_S
    assert late.max() <= LATENESS_S


def test_what_a_killed_follower_brought_online_is_corrected_though_the_next_clock_is_behind(
    place: Place, shop: Shop, processes: Any
) -> None:
    """A value that no commit holds must not outlive the one that the lake has of the same key and time."""
    view, topic = place.spec.views[0], place.spec.events[0].topic
    ready = processes.Event()
    with process_of(processes, ingest_until, place, "follow", "after the online write", ready) as process:
        assert ready.wait(60)
        shop.put(topic, [event_value("noon", NOON, amount=10)])
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert online_rows(place, view)["viewed_amount_mean_1d"].to_list() == [10]
    assert place.lake.rows(place.spec.events[0].table) == 0
    shop.put(topic, [event_value("before", NOON - timedelta(hours=1), amount=40)])
    take_in(place, datetime.now(UTC) - timedelta(hours=1))
    assert online_rows(place, view)["viewed_amount_mean_1d"].to_list() == [25]
    assert_everything_counts_once(place)


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[datetime, list[tuple[int, bytes]]]]:
    """A history in micro-batches: when each is taken in by its clock, and (partition, value) of its records.

    Times are few, so that some are equal; some come late or too late, and some records come again.
    """
    minutes = st.one_of(st.integers(0, 600), st.sampled_from([0, 60, 120, 600, 1_440]))
    customers, amounts = st.sampled_from(["c0", "c1"]), st.sampled_from([1.0, 2.5, 100.0])
    events = draw(st.lists(st.tuples(minutes, customers, amounts, st.sampled_from([True, False, None])), max_size=25))
    values = [
        event_value(f"e{i}", FIRST + timedelta(minutes=minute), customer, amount, liked)
        for i, (minute, customer, amount, liked) in enumerate(events)
    ]
    again = draw(st.lists(st.sampled_from(values), max_size=6)) if values else []
    order = draw(st.permutations([*values, *again]))
    placed = [(draw(st.integers(0, PARTITIONS - 1)), value) for value in order]
    cuts = sorted(draw(st.lists(st.integers(0, len(placed)), max_size=4)))
    clock = st.integers(-120, 120).map(lambda minute: FIRST + timedelta(days=9, minutes=minute))
    return [(draw(clock), placed[a:b]) for a, b in pairwise([0, *cuts, len(placed)])]


def early(name: str, hours: float) -> bytes:
    return event_value(name, FIRST + timedelta(hours=hours))


@given(arrivals())
# Too late on its first partition, in time on another: the second copy is the one that counts.
@example([(NOON, [(0, early("a", 7)), (0, early("b", 0))]), (NOON, [(1, early("b", 0))])])
@settings(max_examples=40)
def test_any_split_of_any_shuffled_history_makes_the_features_of_one_backfill(
    batches: list[tuple[datetime, list[tuple[int, bytes]]]],
) -> None:
    with tempfile.TemporaryDirectory() as home:
        place = Place(Path(home), "127.0.0.1:9", "shop")
        lake, spec = place.lake, place.spec
        event, view = spec.events[0], spec.views[0]
        log: list[Logged] = []
        reached = dict.fromkeys(range(PARTITIONS), 0)
        for clock, records in batches:
            stream = TopicStream(place.settings, lake, event)
            offsets = []
            for partition, value in records:
                offsets.append(reached[partition])
                log.append(Logged(partition, reached[partition], value, json.loads(value)))
                reached[partition] += 1
            partitions, values = [p for p, _ in records], [v for _, v in records]
            taken = Records.of_columns(partitions, offsets, [None] * len(records), values)
            stream.take(Batch(event.topic, taken, {p: reached[p] for p in partitions}), clock)
            stream.commit()
            if lake.exists(event.table):
                refresh_view(place.settings, lake, spec, view)
        if not log:
            return
        features = newest_rows(place, view)
        assert_frame_equal(features, expected_features(log, view), rel_tol=1e-9)
        assert_online_is(features, place, view)
