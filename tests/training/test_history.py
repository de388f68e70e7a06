from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from features.lake import Lake
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from rollout.ledger import Ledger
from training.history import Retrain, champion_history, record_begin, record_retrain, retrains

NOW = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings(home=tmp_path), "shop")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def ended(as_of: datetime) -> Retrain:
    return Retrain(as_of, "drift", "lightgbm", "held", "too few rows", math.nan, math.nan, "3")


def test_an_auc_that_was_not_looked_at_stays_nan(lake: Lake) -> None:
    record_retrain(lake, ended(NOW), NOW)
    (found,) = retrains(lake)
    assert (found.as_of, found.version) == (NOW, "3")
    assert math.isnan(found.champion_auc)
    assert math.isnan(found.candidate_auc)


def test_only_retrains_that_ended_are_listed(lake: Lake) -> None:
    record_begin(lake, NOW, "drift", "lightgbm", NOW)
    assert retrains(lake) == []
    record_retrain(lake, ended(NOW), NOW + timedelta(minutes=5))
    record_begin(lake, NOW + DAY, "drift", "lightgbm", NOW + DAY)
    assert [r.as_of for r in retrains(lake)] == [NOW]


def test_an_attempt_that_did_not_end_is_remembered_until_it_does(lake: Lake, ledger: Ledger) -> None:
    def history(as_of: datetime) -> tuple[datetime | None, datetime | None]:
        found = champion_history(lake, ledger, PIPELINE, as_of)
        return found.last_attempt, found.last_unended

    assert history(NOW) == (None, None)
    record_begin(lake, NOW, "drift", "lightgbm", NOW)
    assert history(NOW + DAY) == (None, NOW)
    assert history(NOW - DAY) == (None, None)
    # The run of that very moment goes on where it was killed.
    assert history(NOW) == (None, None)
    record_retrain(lake, ended(NOW), NOW)
    assert history(NOW + DAY) == (NOW, None)
    assert history(NOW) == (NOW, None)
