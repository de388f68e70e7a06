from __future__ import annotations

import logging
from typing import Any

import pytest
from shop import (
    BAD,
    FIRST,
    Place,
    Shop,
    assert_everything_counts_once,
    event_value,
    follow,
    make_follower,
    running,
    take_in,
    take_in_again_and_again,
    wait_until,
)
from watched import process_of

from features import dead_letters
from features import follow as following
from features.follow import Committed
from features.topic_stream import TopicStream

WAYS = {"follower": follow, "micro-batches": take_in_again_and_again}


@pytest.mark.parametrize(
    ("one", "other"),
    [("follower", "follower"), ("follower", "micro-batches"), ("micro-batches", "micro-batches")],
)
def test_two_ingests_at_once_lose_and_double_nothing(
    one: str, other: str, place: Place, shop: Shop, processes: Any
) -> None:
    ended = processes.Event()
    lake, spec = place.lake, place.spec
    with (
        process_of(processes, WAYS[one], place, ended) as first,
        process_of(processes, WAYS[other], place, ended) as second,
    ):
        with shop.sending(records=15, every_s=0.03):
            wait_until(lambda: sum(lake.rows(event.table) for event in spec.events) > 1_500)
        ended.set()
        for process in (first, second):
            process.join(60)
            assert process.exitcode == 0
    take_in(place)
    assert_everything_counts_once(place)


def test_a_follower_that_is_overtaken_goes_on_and_tells_nobody_to_run_it_again(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = TopicStream.commit

    def overtaken(stream: TopicStream) -> None:
        if stream.pending_rows:
            monkeypatch.setattr(TopicStream, "commit", commit)
            take_in(place)
        commit(stream)

    follows: list[Committed] = []
    with caplog.at_level(logging.WARNING), running(make_follower(place, follows.append)):
        wait_until(lambda: bool(follows))
        monkeypatch.setattr(TopicStream, "commit", overtaken)
        shop.send(20)
        wait_until(lambda: "going on from the lake's last commit" in caplog.text)
    assert "another writer" in caplog.text
    assert "run" not in caplog.text
    assert_everything_counts_once(place)


def test_events_that_another_ingest_commits_while_a_follower_begins_count_once_online(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop.send(60)
    tail = following.Tail

    def overtaken(*arguments: Any) -> following.Tail:
        """The session knows its positions by now; the events that the tail is read from are committed only here."""
        monkeypatch.setattr(following, "Tail", tail)
        shop.send(60)
        take_in(place)
        return tail(*arguments)

    monkeypatch.setattr(following, "Tail", overtaken)
    with caplog.at_level(logging.WARNING), running(make_follower(place)):
        wait_until(lambda: "going on from the lake's last commit" in caplog.text)
    assert_everything_counts_once(place)


def test_dead_letters_that_another_ingest_keeps_in_between_are_kept_once(
    place: Place, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, send = place.spec.events[0].topic, dead_letters.send_dead_letters
    for round_ in range(2):  # before there is a table of them, and after
        shop.put(topic, [*BAD, event_value(f"e{round_}", FIRST)])

        def overtaken(*arguments: Any) -> None:
            monkeypatch.setattr(dead_letters, "send_dead_letters", send)
            take_in(place)
            send(*arguments)

        monkeypatch.setattr(dead_letters, "send_dead_letters", overtaken)
        take_in(place)
    assert_everything_counts_once(place)
