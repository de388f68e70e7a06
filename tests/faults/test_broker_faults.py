from __future__ import annotations

import importlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shop import Place, Shop, all_is_in, assert_everything_counts_once, make_follower, running, take_in, wait_until

from features.consumer import POLL_MS, STALLED_POLLS
from perennial.errors import UnreachableError


@pytest.fixture
def place(tmp_path: Path, own_broker: Any) -> Place:
    patience = (("request_timeout_ms", 4_000), ("delivery_timeout_ms", 6_000))
    return Place(tmp_path / "home", own_broker.address, "shop", kafka_options=patience)


def test_a_micro_batch_without_a_broker_says_so_and_the_next_one_goes_on(
    place: Place, shop: Shop, own_broker: Any
) -> None:
    shop.send(100)
    take_in(place)
    shop.send(100)
    own_broker.stop()
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"no Kafka broker answers at {own_broker.address} .*`perennial up`"):
        take_in(place)
    assert time.monotonic() - began < 15
    own_broker.start_again()
    shop.send(100)
    take_in(place)
    assert_everything_counts_once(place)


@pytest.mark.parametrize("step", ["while records are read", "while dead letters are sent"])
def test_a_broker_that_goes_away_within_a_micro_batch_loses_and_doubles_nothing(
    step: str, place: Place, shop: Shop, own_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.send(200)
    owner, name = {
        "while records are read": ("features.consumer", "poll"),
        "while dead letters are sent": ("features.dead_letters", "send_dead_letters"),
    }[step]
    gone = _gone_before(own_broker, owner, name, monkeypatch)
    with pytest.raises(UnreachableError):
        take_in(place)
    ended = time.monotonic()
    (since,) = gone
    # Told at once where the client notices, and else when nothing has come for as long as ingest waits at most.
    assert ended - since < STALLED_POLLS * POLL_MS / 1000 + 10
    own_broker.start_again()
    shop.send(50)
    take_in(place)
    assert_everything_counts_once(place)


def _gone_before(broker: Any, owner: str, name: str, patch: pytest.MonkeyPatch) -> list[float]:
    """Stop the broker when a function is called for the first time; the moment since which it is away is in the list then."""
    module, first, away = importlib.import_module(owner), threading.Event(), list[float]()
    original = getattr(module, name)

    def gone(*arguments: Any, **named: Any) -> Any:
        if not first.is_set():
            first.set()
            broker.stop()
            away.append(time.monotonic())
        return original(*arguments, **named)

    patch.setattr(module, name, gone)
    return away


def test_a_follower_waits_for_a_broker_that_is_away_and_tells(
    place: Place, shop: Shop, own_broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    follower = make_follower(place)
    with caplog.at_level(logging.WARNING, "features.follow"), running(follower):
        shop.send(100)
        wait_until(lambda: all_is_in(place))
        for _ in range(2):
            shop.send(50)  # some of them are not committed yet
            own_broker.stop()
            told = len(caplog.records)
            wait_until(lambda: len(caplog.records) > told, 60)  # noqa: B023
            own_broker.start_again()
            shop.send(50)
            wait_until(lambda: all_is_in(place))
    assert all("no Kafka broker answers" in r.message and "going on from" in r.message for r in caplog.records)
    assert_everything_counts_once(place)
