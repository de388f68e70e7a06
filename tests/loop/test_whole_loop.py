from __future__ import annotations

import re
from typing import TYPE_CHECKING

import duckdb
import httpx
import polars as pl
import pytest
from two_weeks import STORY

from features.labels import PREDICTIONS
from features.lake import Lake
from features.store import ENTITY_KEY, view_table
from perennial.story import DAY
from pipelines.spec import load_pipeline

if TYPE_CHECKING:
    from two_weeks import Told

pytestmark = pytest.mark.stack
NAME = "two_weeks"


def test_every_stage_of_the_loop_really_happened(two_weeks: Told) -> None:
    assert two_weeks.figures.stages
    missing = [name for name, happened in two_weeks.figures.stages.items() if not happened]
    assert missing == [], two_weeks.figures


def test_every_event_produced_is_ingested_or_dead_lettered_once(two_weeks: Told) -> None:
    # Counted in the source, not by the code under test: flights, departures, arrivals and weather of 2 to 15 January.
    spec = load_pipeline("flights")
    source = spec.replay(STORY.begin, STORY.through + DAY)
    lake = Lake(two_weeks.settings, NAME)
    for event in spec.events:
        stored = lake.read(event.table).select(*event.schema_)
        assert stored.sort(event.event_id).equals(source[event.topic].select(*event.schema_).sort(event.event_id))
    assert two_weeks.figures.dead_lettered == STORY.broken_records


def test_every_flight_of_the_simulated_days_was_scored_once_by_the_champion_of_its_day(two_weeks: Told) -> None:
    scheduled = load_pipeline("flights").replay(STORY.bootstrap_until, STORY.through + DAY)["flights.scheduled.v1"]
    lake = Lake(two_weeks.settings, NAME)
    predictions = lake.read(PREDICTIONS, since=STORY.bootstrap_until)
    assert sorted(predictions[ENTITY_KEY]) == sorted(scheduled["flight_id"])
    assert predictions["score"].is_between(0, 1).all()
    versions = {move["champion"]["version"] for move in two_weeks.figures.promotions}
    assert set(predictions["model_version"]) <= versions


def test_the_retrain_was_started_by_the_automation_and_gated_on_rows_that_nobody_learned_from(two_weeks: Told) -> None:
    first, *later = two_weeks.figures.retrains
    assert first["champion_auc"] is None
    assert first["reason"].startswith("bootstrap")
    assert later
    for retrain in later:
        assert retrain["reason"].startswith("retrain: ")
        better = retrain["candidate_auc"] >= retrain["champion_auc"] - 0.01
        assert (retrain["decision"] == "accepted") is better


def test_the_drift_alert_shows_what_moved_how_much_since_when_and_what_was_decided(two_weeks: Told) -> None:
    received = [m for m in two_weeks.webhook.received if f"{NAME}: drift" in m["title"]]
    assert received, two_weeks.webhook.titles
    first = received[0]
    assert first["title"] == f"WARNING {NAME}: drift"
    lines = first["message"].splitlines()
    moved = [line for line in lines if line.startswith("- ") and not re.fullmatch(r"- and \d+ more", line)]
    assert moved
    assert all(re.search(r"PSI \d|rows without a value|never seen", line) for line in moved)
    told = dict(line.split(": ", 1) for line in lines if re.match(r"(Since|As of|Decision|Report|What to do): ", line))
    assert re.fullmatch(r"2013-01-\d\d \d\d:\d\d UTC", told["Since"])
    assert told["Since"] < told["As of"]
    assert told["Decision"] == "retrain, because of drift"
    # Who follows the link finds the page with the same columns.
    address = told["Report"]
    assert address.startswith(two_weeks.stack.addresses["mlflow_tracking_uri"])
    pages = list((two_weeks.settings.root / "reports" / NAME).glob("*/drift.html"))
    assert any(all(line.removeprefix("- ").split(":")[0] in page.read_text() for line in moved) for page in pages)
    assert all((page.parent / "evidently.html").stat().st_size > 100_000 for page in pages)


def test_drift_is_charted_in_mlflow_and_kept_for_prometheus(two_weeks: Told) -> None:
    uri = f"{two_weeks.stack.addresses['mlflow_tracking_uri']}/api/2.0/mlflow"
    found = httpx.get(f"{uri}/experiments/get-by-name", params={"experiment_name": f"{NAME}-monitoring"}).json()
    body = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = httpx.post(f"{uri}/runs/search", json=body).json()["runs"]
    metrics = {metric["key"] for run in runs for metric in run["data"]["metrics"]}
    assert {"score_psi", "psi/distance_mi", "missing_rate/aircraft_arrival_delay_last_24h", "status/drift"} <= metrics
    gauges = (two_weeks.settings.root / "metrics" / f"{NAME}.monitor.prom").read_text()
    assert f'perennial_drift_psi{{feature="distance_mi",pipeline="{NAME}"}}' in gauges


def test_the_bad_release_is_rolled_back_and_the_champion_restored(two_weeks: Told) -> None:
    bad = two_weeks.figures.bad_release
    assert bad["restored_version"] == bad["champion_before"] != bad["version"]
    assert bad["rollback_s"] < 60
    answer = httpx.get(f"{two_weeks.stack.addresses['scoring_url']}/v1/{NAME}/serving").json()
    assert answer["champion"]["version"] == bad["champion_before"]
    assert answer["challenger"] is None


def test_stream_features_in_the_lake_equal_a_computation_from_the_source(two_weeks: Told) -> None:
    spec = load_pipeline("flights")
    departures = spec.replay(STORY.begin, STORY.through + DAY)["flights.departed.v1"]
    # By DuckDB, which shares no code with the windows: mean departure delay of the last three hours at each origin.

    departed = departures.select("origin", "event_timestamp", "departure_delay_min")  # noqa: F841 (DuckDB reads it by name)
    expected = duckdb.sql(
        """
        select a.origin, a.event_timestamp, avg(b.departure_delay_min) as expected
        from (select distinct origin, event_timestamp from departed) a join departed b
          on a.origin = b.origin and b.event_timestamp <= a.event_timestamp
          and b.event_timestamp > a.event_timestamp - interval 3 hour
        group by all
        """
    ).pl()
    view = next(v for v in spec.views if v.name == "origin_traffic")
    stored = (
        Lake(two_weeks.settings, NAME)
        .read(view_table(view))
        .sort("created_timestamp")
        .unique(["origin", "event_timestamp"], keep="last")
    )
    joined = expected.with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC"))).join(
        stored, on=["origin", "event_timestamp"], how="full", coalesce=True
    )
    difference = (joined["expected"] - joined["origin_departure_delay_mean_3h"]).abs()
    assert joined.height == stored.height == expected.height
    assert difference.null_count() == 0
    assert difference.max() < 1e-9
