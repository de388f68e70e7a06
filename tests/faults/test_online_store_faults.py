from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from redis import Redis
from shop import (
    Place,
    Shop,
    all_is_in,
    assert_everything_counts_once,
    make_follower,
    read_log,
    running,
    take_in,
    wait_until,
)

from perennial.errors import UnreachableError


@pytest.fixture
def place(place: Place, redis: Any) -> Place:
    return dataclasses.replace(place, online=redis.url)


def events_in(place: Place) -> bool:
    """Whether the lake holds all events that were produced."""
    logs = {e.table: [r for r in read_log(place, e.topic) if r.document] for e in place.spec.events}
    return {table: place.lake.rows(table) for table in logs} == {table: len(log) for table, log in logs.items()}


def test_the_lake_takes_events_in_while_the_online_store_is_down(place: Place, shop: Shop, redis: Any) -> None:
    shop.send(200)
    take_in(place)
    assert_everything_counts_once(place)
    redis.stop()
    for _ in range(2):
        shop.send(100)
        with pytest.raises(UnreachableError, match=rf"{redis.port}.*does not answer.*PERENNIAL_ONLINE_STORE_URL"):
            take_in(place)
        assert events_in(place)
    redis.start()
    shop.send(20)
    take_in(place)
    assert_everything_counts_once(place)


def test_a_follower_takes_events_in_while_the_online_store_is_down_and_brings_them_online_after(
    place: Place, shop: Shop, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "features.follow"), running(make_follower(place)):
        shop.send(100)
        wait_until(lambda: all_is_in(place))
        redis.stop()
        shop.send(100)
        wait_until(lambda: events_in(place))
        assert not all_is_in(place)
        redis.start()
        shop.send(20)
        wait_until(lambda: all_is_in(place))
    assert "does not answer" in caplog.text
    assert_everything_counts_once(place)


def test_a_follower_outlives_a_failover_of_the_online_store(
    place: Place, shop: Shop, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the new master is found, Redis is a replica, which takes no writes."""
    client = Redis.from_url(redis.url)
    with caplog.at_level(logging.WARNING, "features.follow"), running(make_follower(place)):
        shop.send(100)
        wait_until(lambda: all_is_in(place))
        client.replicaof("127.0.0.1", redis.port)
        shop.send(100)
        wait_until(lambda: "read only replica" in caplog.text and events_in(place))
        assert not all_is_in(place)
        client.replicaof("NO", "ONE")
        shop.send(20)
        wait_until(lambda: all_is_in(place))
    assert_everything_counts_once(place)
