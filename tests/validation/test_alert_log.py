"""The record of what was sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.lake import Lake
from perennial.errors import StateError
from perennial.settings import Settings
from validation.alert_log import ALERTS, Sent, read_sent, record_sent, told_to
from validation.alerts import Alert, Finding, Moved, Severity, Told

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def sent(target: str, minute: int = 0, *moved: str) -> Sent:
    finding = Finding("drift", Severity.CRITICAL, "moved", tuple(Moved(name, "PSI 1") for name in moved))
    return Sent(target, Alert("shop", "alert", finding, "no retrain", NOW + timedelta(minutes=minute)))


def test_each_target_has_what_it_was_told(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "shop")
    assert told_to(lake) == {}
    assert read_sent(lake).height == 0
    record_sent(lake, [], NOW)
    assert not lake.exists(ALERTS)
    record_sent(lake, [sent("slack://", 0, "b", 'ä, "a"'), sent("", 0)], NOW)
    record_sent(lake, [sent("slack://", 5)], NOW)
    told = told_to(lake)
    assert told[""] == (Told("drift", "alert", Severity.CRITICAL, frozenset(), NOW),)
    assert sorted(told["slack://"], key=lambda t: t.as_of) == [
        Told("drift", "alert", Severity.CRITICAL, frozenset({"b", 'ä, "a"'}), NOW),
        Told("drift", "alert", Severity.CRITICAL, frozenset(), NOW + timedelta(minutes=5)),
    ]
    newest = read_sent(lake).row(0, named=True)
    assert (newest["target"], newest["headline"], newest["decision"]) == ("slack://", "moved", "no retrain")
    assert newest["event_timestamp"] == NOW + timedelta(minutes=5)


def test_two_that_record_at_once_both_keep_their_messages(tmp_path: Path) -> None:
    rounds, barrier = 4, threading.Barrier(2)

    def work(name: str) -> None:
        lake = Lake(Settings(home=tmp_path), "shop")
        for minute in range(rounds):
            barrier.wait(20)
            record_sent(lake, [sent(name, minute)], NOW)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["slack://", "json://a"]))
    kept = Lake(Settings(home=tmp_path), "shop").read(ALERTS).group_by("target").len().sort("target")
    assert kept.rows() == [("json://a", rounds), ("slack://", rounds)]


def test_a_record_of_a_later_version_is_refused_by_its_words(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "shop")
    record_sent(lake, [sent("slack://")], NOW)
    strange = lake.read(ALERTS).with_columns(kind=pl.lit("escalation"))
    lake.append(ALERTS, strange, partition_by=None)
    with pytest.raises(StateError, match="'escalation'"):
        told_to(lake)
