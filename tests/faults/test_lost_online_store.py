from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from shop import (
    FIRST,
    Place,
    Shop,
    all_is_in,
    assert_everything_counts_once,
    event_value,
    make_follower,
    running,
    take_in,
    wait_until,
)

from features.materialize import materialize
from features.online_check import check_online
from features.store import OnlineWriter
from pipelines.spec import FeatureView


@pytest.fixture(params=["sqlite", "redis"])
def place(place: Place, request: pytest.FixtureRequest) -> Place:
    if request.param == "sqlite":
        return place
    return dataclasses.replace(place, online=request.getfixturevalue("redis").url)


@pytest.fixture
def lose(place: Place, request: pytest.FixtureRequest) -> Any:
    """Everything that is online is gone, as after a restart of a Redis that keeps nothing, or the loss of a file."""

    def lose() -> None:
        if place.online:
            request.getfixturevalue("redis").flush()
        for file in (place.settings.feast_dir / place.name).glob("online.db*"):
            file.unlink()

    return lose


def moments(online: OnlineWriter, view: FeatureView) -> dict[str, tuple[Any, Any]]:
    """Event time and created time of every key that is online."""
    keys = sorted({key for batch in online.keys(view) for key in batch})
    return {key: (at, created) for key, at, created, *_ in online.read(view, keys).iter_rows()}


def bring_back(online: OnlineWriter, place: Place) -> Iterator[int]:
    return (materialize(online, place.lake, view).keys for view in place.spec.views)


def assert_online_is_offline(place: Place) -> None:
    checks = check_online(place.spec, place.settings, place.lake, again_after_s=0)
    assert [check.verdict.status.name for check in checks] == ["PASS", "PASS"]


def test_what_the_online_store_lost_comes_back_without_a_new_event(place: Place, shop: Shop, lose: Any) -> None:
    shop.send(300)
    take_in(place)
    lose()
    checks = check_online(place.spec, place.settings, place.lake, again_after_s=0)
    assert all(check.differences == {"missing online": check.keys} for check in checks)
    take_in(place)  # alone it brings nothing back
    assert not any(moments(OnlineWriter(place.spec, place.settings), view) for view in place.spec.views)
    assert list(bring_back(OnlineWriter(place.spec, place.settings), place)) == [check.keys for check in checks]
    assert_online_is_offline(place)
    assert_everything_counts_once(place)


def test_beside_a_follower_nothing_goes_back_in_time(place: Place, shop: Shop, lose: Any) -> None:
    """What is read from the lake is written only after the follower has written newer rows of the same keys."""
    shop.send(300)

    class Overtaken(OnlineWriter):
        def write(self, view: FeatureView, rows: pl.DataFrame) -> int:
            shop.send(200)
            read = {key: (at, created) for key, at, created, *_ in rows.iter_rows()}

            def some_are_newer() -> bool:
                now = moments(self, view)
                return sum(now[key] > read[key] for key in read.keys() & now.keys()) >= 3

            wait_until(some_are_newer)
            before = moments(self, view)
            written = super().write(view, rows)
            after = moments(self, view)
            assert after.keys() >= before.keys() | read.keys()
            assert all(after[key] >= before[key] for key in before)
            assert all(after[key] >= read[key] for key in read)
            return written

    with running(make_follower(place)):
        wait_until(lambda: all_is_in(place))
        lose()
        assert min(bring_back(Overtaken(place.spec, place.settings), place)) > 0
        shop.send(50)
        wait_until(lambda: all_is_in(place))
    assert_online_is_offline(place)
    assert_everything_counts_once(place)


def test_a_follower_goes_on_in_what_took_the_place_of_the_lost_store(place: Place, shop: Shop, lose: Any) -> None:
    """Also before anything is brought back, and without a late event, which would be built from the lake."""
    topic = place.spec.events[0].topic
    shop.put(topic, [event_value("first", FIRST, "c0"), event_value("second", FIRST, "c1")])
    with running(make_follower(place)):
        wait_until(lambda: all_is_in(place))
        lose()
        shop.put(topic, [event_value("third", FIRST + timedelta(seconds=1), "c0")])
        wait_until(lambda: all_is_in(place))
        sum(bring_back(OnlineWriter(place.spec, place.settings), place))
        shop.put(topic, [event_value("fourth", FIRST + timedelta(seconds=2), "c1")])
        wait_until(lambda: all_is_in(place))
    assert_everything_counts_once(place)
