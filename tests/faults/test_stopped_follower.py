from __future__ import annotations

import itertools
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from shop import (
    FIRST,
    Place,
    Shop,
    assert_everything_counts_once,
    event_value,
    follow_to_the_end,
    make_follower,
    running,
    wait_until,
)

from features import ingest
from features.consumer import read_to_end
from features.follow import Committed, Follower
from features.topic_stream import TopicStream


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came while nobody followed is read ten records at a time."""
    monkeypatch.setattr(ingest, "read_to_end", partial(read_to_end, max_rows=10))


@pytest.mark.usefixtures("small_batches")
def test_a_follower_that_is_stopped_within_a_backlog_keeps_the_batches_it_read_and_ends(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = place.spec.events[0]
    shop.put(event.topic, [event_value(f"e{i}", FIRST) for i in range(50)])
    told: list[Committed] = []
    follower = make_follower(place, told.append)
    take, batches = TopicStream.take, itertools.count(1)

    def stop_in_the_second(stream: TopicStream, *arguments: Any) -> Any:
        if next(batches) == 2:
            follower.stop()
        return take(stream, *arguments)

    monkeypatch.setattr(TopicStream, "take", stop_in_the_second)
    follower.run()
    assert place.lake.rows(event.table) == 20
    assert [[(t.ingested, t.lag_rows) for t in committed.topics] for committed in told] == [[(20, 30), (0, 0)]]
    follow_to_the_end(place)
    assert_everything_counts_once(place)


def test_a_follower_that_is_stopped_while_features_are_built_ends_after_the_current_step(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = place.spec.events[0]
    shop.put(event.topic, [event_value(f"e{i}", FIRST + timedelta(minutes=i)) for i in range(50)])
    monkeypatch.setattr(ingest, "MAX_NEW_ROWS", 10)
    told: list[Committed] = []
    follower = make_follower(place, told.append)
    write, writes = ingest.write_online, itertools.count(1)

    def stop_in_the_second(*arguments: Any) -> int:
        if next(writes) == 2:
            follower.stop()
        return write(*arguments)

    monkeypatch.setattr(ingest, "write_online", stop_in_the_second)
    follower.run()
    assert next(writes) == 3
    assert [view.rows for view in told[0].views] == [20]
    follow_to_the_end(place)
    assert_everything_counts_once(place)


@pytest.mark.usefixtures("small_batches")
def test_a_follower_that_is_stopped_in_a_conflict_keeps_all_that_it_had_brought_online(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had read 40 records and brought them online; of those, the other writer took ten."""
    event = place.spec.events[0]
    told: list[Committed] = []
    follower = Follower(place.settings, place.lake, place.spec, 60, 40, told.append)
    commit = TopicStream.commit

    def overtaken(stream: TopicStream) -> None:
        if stream.pending_rows:
            monkeypatch.setattr(TopicStream, "commit", commit)
            ingest.ingest_topics(place.settings, place.lake, [event], FIRST, lambda _: True)
            assert place.lake.rows(event.table) == 10
            follower.stop()
        commit(stream)

    with running(follower):
        wait_until(lambda: bool(told))
        monkeypatch.setattr(TopicStream, "commit", overtaken)
        shop.put(event.topic, [event_value(f"e{i}", FIRST) for i in range(40)])
        wait_until(lambda: len(told) > 1)
    assert place.lake.rows(event.table) == 40
    assert_everything_counts_once(place)
