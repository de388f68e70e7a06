"""`perennial drift`, as a person at a terminal uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.labels import PREDICTIONS
from features.lake import Lake
from flows.drift import reference_files
from perennial.drift_commands import longest_within
from perennial.scaffold import init_pipeline
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import RolloutPolicy
from rollout.controller import release
from rollout.ledger import Ledger, Model
from validation.profile import build_reference

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BEGIN + timedelta(days=40)
MOVED = next(f.name for f in PIPELINE.features if f.kind == "numeric")


def predicted(days: range, shift: float = 0.0) -> pl.DataFrame:
    """Twenty predictions an hour, whose first numeric feature is shifted."""
    dice = np.random.default_rng(days.start)
    times = [BEGIN + timedelta(days=d, hours=h, minutes=3 * m) for d in days for h in range(24) for m in range(20)]
    values = {
        f.name: dice.normal(size=len(times)) if f.kind == "numeric" else dice.choice(["a", "b"], len(times))
        for f in PIPELINE.features
    }
    values[MOVED] = values[MOVED] + shift
    at = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        {
            "entity_key": [f"{t:%d%H%M}" for t in times],
            "event_timestamp": times,
            **values,
            "score": dice.random(len(times)),
            "model_version": "1",
            "created_timestamp": times,
        }
    ).with_columns(pl.col("event_timestamp", "created_timestamp").cast(at))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose newest six days have moved, and the six before have not; in the last hours nothing came."""
    folder = tmp_path_factory.mktemp("drift")
    init_pipeline("shop", folder / "pipelines")
    settings = Settings(home=folder / "home")
    bundle = folder / "bundle"
    bundle.mkdir()
    reference = build_reference(
        predicted(range(28)), PIPELINE.features, PIPELINE.drift, timestamp_column="event_timestamp"
    )
    for name, content in reference_files(reference).items():
        (bundle / name).write_bytes(content)
    (bundle / "bundle.json").write_text(json.dumps({"importance": {f.name: 1.0 for f in PIPELINE.features}}))
    at_once = RolloutPolicy(steps_pct=())
    settings.root.mkdir(parents=True)
    release(Ledger(settings.ledger_url), "shop", Model("1", bundle.as_uri()), at_once, "a test's", None, BEGIN)
    lake = Lake(settings, "shop")
    lake.append(PREDICTIONS, predicted(range(28, 34)))
    lake.append(PREDICTIONS, predicted(range(34, 40), shift=1.0))
    return folder


def call(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
    where = {"PERENNIAL_HOME": str(home / "home"), "PERENNIAL_PIPELINES_DIR": str(home / "pipelines"), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", "perennial.cli", "drift", *options],
        env={**own, **where, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_moved_is_named_with_its_numbers_and_the_status_tells(home: Path) -> None:
    found = call(home, "shop", "--as-of", NOW.isoformat())
    assert found.returncode == 1, found.stderr
    assert "shop, 2026-02-04 00:00 to 2026-02-10 00:00 UTC, against version 1" in found.stdout
    last = found.stdout.splitlines()[-1]
    assert last.startswith(f"FAIL. 1 of {len(PIPELINE.features) + 1} columns drifted")
    assert MOVED in last
    assert "drifted" in next(line for line in found.stdout.splitlines() if f" {MOVED} " in line)


def test_before_it_moved_nothing_has(home: Path) -> None:
    found = call(home, "shop", "--as-of", (NOW - timedelta(days=6)).isoformat())
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("PASS. none of")


def test_a_window_may_be_chosen(home: Path) -> None:
    found = call(home, "shop", "--as-of", NOW.isoformat(), "--window", "12d")
    assert "2026-01-29 00:00 to 2026-02-10 00:00" in found.stdout
    hours = call(home, "shop", "--as-of", NOW.isoformat(), "--window", "12h")
    assert "2026-02-09 12:00 to 2026-02-10 00:00" in hours.stdout
    assert hours.stdout.splitlines()[-1].startswith(("FAIL. 1 of", "INCONCLUSIVE. "))


def test_a_window_that_is_longer_than_the_predictions_reach_back_says_which_is_the_longest(home: Path) -> None:
    refused = call(home, "shop", "--as-of", NOW.isoformat(), "--window", "400d")
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        "perennial: --window 400d is longer than there are predictions: the first is of 2026-01-29 00:00 UTC. The longest "
        "window that they fill until 2026-02-10 00:00 is 12d; write --window 12d, or shorter"
    )
    # What it says is taken, and so is a day more: a tenth of a window may be empty.
    for window in ("12d", "13d"):
        taken = call(home, "shop", "--as-of", NOW.isoformat(), "--window", window)
        assert "none of 8 columns drifted in 5760 rows" in taken.stdout, taken.stderr


@pytest.mark.parametrize(
    ("there", "longest"),
    [
        (timedelta(hours=1), "1h"),
        (timedelta(hours=11), "8h"),
        (timedelta(hours=23), "12h"),
        (timedelta(hours=24), "1d"),
        (timedelta(days=3, hours=23), "3d"),
    ],
)
def test_the_longest_window_is_of_whole_days_or_of_hours_that_divide_one(there: timedelta, longest: str) -> None:
    assert longest_within(there) == longest


def test_a_window_without_rows_is_inconclusive_and_no_pass(home: Path) -> None:
    found = call(home, "shop", "--as-of", (NOW + timedelta(days=30)).isoformat())
    assert found.returncode == 1
    assert "INCONCLUSIVE. the window from" in found.stdout
    assert "has no rows" in found.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("shop", "--window", "7"), "--window '7' is no length; write it as 6h or 7d"),
        (("shop", "--window", "5h"), "--window 5h: whole days, or hours that divide a day"),
        (("shop", "--window", "0d"), "--window '0d' is no length"),
        (("shop", "--against", "9"), "MLflow does not answer at http://127.0.0.1:9"),
        (("nobody",), "unknown pipeline 'nobody'"),
    ],
)
def test_what_cannot_be_is_a_sentence(home: Path, options: tuple[str, ...], told: str) -> None:
    found = call(home, *options)
    assert found.returncode != 0
    assert told in found.stderr
    assert "Traceback" not in found.stderr
