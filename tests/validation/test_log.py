from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from features.lake import Lake
from perennial.settings import Settings
from validation.log import VERDICTS, last_statuses, record_verdicts, unjudged_since
from validation.verdict import Status, Verdict

NOW = datetime(2026, 1, 8, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


def test_nothing_was_found_before_the_first_run(lake: Lake) -> None:
    assert last_statuses(lake) == {}


def test_two_that_monitor_at_once_both_keep_what_they_found(tmp_path: Path, lake: Lake) -> None:
    record_verdicts(lake, {"data": Verdict(Status.PASS, "before")}, NOW, NOW)
    rounds, barrier = 4, threading.Barrier(2)

    def work(name: str) -> None:
        own = Lake(Settings(home=tmp_path), "shop")
        for _ in range(rounds):
            barrier.wait(20)
            record_verdicts(own, {"data": Verdict(Status.PASS, name)}, NOW, NOW)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["one", "other"]))
    kept = lake.read(VERDICTS).group_by("reason").len().sort("reason")
    assert kept.rows() == [("before", 1), ("one", rounds), ("other", rounds)]


def test_the_newest_run_counts_and_every_run_is_kept(lake: Lake) -> None:
    fine, drifted = Verdict(Status.PASS, "all is well"), Verdict(Status.FAIL, "price moved", {"psi": 0.31})
    record_verdicts(lake, {"data": fine, "drift": fine}, NOW, NOW)
    record_verdicts(lake, {"data": fine, "drift": drifted}, NOW + timedelta(days=1), NOW + timedelta(days=1))
    assert last_statuses(lake) == {"data": "PASS", "drift": "FAIL"}
    kept = lake.read(VERDICTS).sort("event_timestamp", "check")
    assert kept["status"].to_list() == ["PASS", "PASS", "PASS", "FAIL"]
    assert kept["reason"].to_list()[-1] == "price moved"
    assert json.loads(kept["measurements"].to_list()[-1]) == {"psi": 0.31}


def test_since_when_a_check_has_not_been_judged_is_known_until_it_is_judged(lake: Lake) -> None:
    statuses = [Status.PASS, Status.INCONCLUSIVE, Status.ERROR, Status.INCONCLUSIVE, Status.FAIL, Status.INCONCLUSIVE]
    since = []
    for day, status in enumerate(statuses):
        at = NOW + timedelta(days=day)
        record_verdicts(lake, {"drift": Verdict(status, "so it is"), "data": Verdict(Status.PASS, "fine")}, at, at)
        since.append({check: (moment - NOW).days for check, moment in unjudged_since(lake).items()})
    assert since == [{}, {"drift": 1}, {"drift": 1}, {"drift": 1}, {}, {"drift": 5}]
