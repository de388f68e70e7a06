from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from features.lake import Lake
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import RolloutPolicy
from rollout.controller import release, rollback
from rollout.ledger import Ledger, Model
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


def accepted(version: str) -> Retrain:
    return Retrain(NOW, "drift", "lightgbm", "accepted", "auc better", 0.7, 0.72, version)


def test_a_candidate_that_was_rolled_back_is_remembered_with_why_and_how_to_try_again(
    lake: Lake, ledger: Ledger, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "bundle.json").write_text(json.dumps({"trained_as_of": NOW.isoformat()}))
    old, new = (Model(version, (tmp_path / version).as_uri()) for version in ("1", "2"))

    def candidate() -> str:
        return champion_history(lake, ledger, PIPELINE, NOW + DAY).candidate

    release(ledger, PIPELINE.name, old, RolloutPolicy(), "first", None, NOW)
    assert candidate() == ""
    record_retrain(lake, accepted("2"), NOW)
    release(ledger, PIPELINE.name, new, RolloutPolicy(), "passed", None, NOW)
    assert candidate() == ""
    rollback(ledger, PIPELINE.name, "3 canary requests, 50 are needed", NOW)
    assert candidate() == (
        "version 2, which it made, passed its gate and was rolled back (3 canary requests, 50 are needed); "
        "`perennial release pipeline_name --version 2` puts it behind the canary again"
    )
    release(ledger, PIPELINE.name, new, RolloutPolicy(), "by hand", None, NOW, by_hand=True)
    assert candidate() == ""


@pytest.mark.parametrize(("decision", "told"), [("held", "is held"), ("rejected", "was rejected")])
def test_a_candidate_that_its_gate_stopped_is_remembered_with_why(
    lake: Lake, ledger: Ledger, decision: str, told: str
) -> None:
    record_retrain(lake, replace(ended(NOW), decision=decision), NOW)
    found = champion_history(lake, ledger, PIPELINE, NOW + DAY).candidate
    assert f"version 3, which it made, {told} by its gate (too few rows)" in found
    assert ("perennial release pipeline_name --version 3" in found) == (decision == "held")
