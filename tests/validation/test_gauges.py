"""Gauges of the last monitoring run, as Prometheus and a real Pushgateway read them."""

from __future__ import annotations

import math
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from moved_world import EVIL
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from features.metrics import publish
from perennial.settings import Settings
from validation.drift import DriftVerdict, FeatureDrift
from validation.gauges import MonitorState, report_monitoring
from validation.verdict import Status, Verdict

AS_OF = datetime(2026, 1, 8, tzinfo=UTC)
FEATURES = (
    FeatureDrift("delay", 0.4, 0.05, 0.15, Status.FAIL, "moved"),
    FeatureDrift(f'"{EVIL}\n', 0.01, 0.0, 0.0, Status.PASS, "not"),
    FeatureDrift("gust", math.nan, math.nan, math.nan, Status.INCONCLUSIVE, "no rows"),
)
STATE = MonitorState(
    "flights",
    AS_OF,
    DriftVerdict(Verdict(Status.FAIL, "moved"), FEATURES),
    {"data": Verdict(Status.PASS, "fine"), "drift": Verdict(Status.FAIL, "moved")},
    {"auc": 0.71, "log_loss": math.nan},
)
Values = dict[tuple[str, str], float]


def values(text: str, *labels: str) -> Values:
    """Values by name and by the first of these labels that a sample has."""
    return {
        (s.name, next((s.labels[label] for label in labels if label in s.labels), "")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith("perennial")
    }


EXPECTED = {
    ("perennial_drift_psi", "delay"): 0.4,
    ("perennial_drift_psi", FEATURES[1].feature): 0.01,
    ("perennial_drift_missing_rate", "delay"): 0.15,
    ("perennial_drift_missing_rate", FEATURES[1].feature): 0.0,
    ("perennial_drift_status", "delay"): 3,
    ("perennial_drift_status", FEATURES[1].feature): 0,
    ("perennial_drift_status", "gust"): 1,
    ("perennial_verdict_status", "data"): 0,
    ("perennial_verdict_status", "drift"): 3,
    ("perennial_performance", "auc"): 0.71,
    ("perennial_monitor_timestamp_seconds", ""): 1_767_830_400,
}


def test_each_number_that_is_known_is_told_and_none_that_is_not(tmp_path: Path) -> None:
    assert report_monitoring(Settings(home=tmp_path), STATE) == ()
    text = (tmp_path / "metrics" / "flights.monitor.prom").read_text()
    assert values(text, "feature", "check", "metric") == EXPECTED
    assert text.count('pipeline="flights"') == len(EXPECTED)


def test_the_names_and_words_are_those_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    report_monitoring(Settings(home=tmp_path), STATE)
    text = (tmp_path / "metrics" / "flights.monitor.prom").read_bytes()
    judged = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, b"", b"")


def test_a_push_takes_the_place_of_the_last_one_and_of_nobody_elses(tmp_path: Path, pushgateway: str) -> None:
    settings = Settings(home=tmp_path, pushgateway_url=pushgateway)
    stream = CollectorRegistry()
    Gauge("perennial_of_the_stream", "Pushed by ingest.", registry=stream).set(1)
    assert publish(settings, stream, "flights", file="flights", job="perennial") == ()
    earlier = MonitorState(
        "flights", AS_OF, DriftVerdict(STATE.drift.verdict, (FeatureDrift("gone", 1, 0, 0, Status.FAIL, ""),)), {}
    )
    for state in (earlier, STATE):
        assert report_monitoring(settings, state) == ()
    found = values(httpx.get(f"{pushgateway}/metrics").text, "feature", "check", "metric")
    assert found == {**EXPECTED, ("perennial_of_the_stream", ""): 1}
