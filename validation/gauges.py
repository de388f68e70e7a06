"""Prometheus metrics of the last monitoring run: how far each column moved, and how each check ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from features.metrics import publish
from perennial.settings import Settings
from validation.drift import DriftVerdict
from validation.verdict import Verdict

JOB = "perennial_monitor"


@dataclass(frozen=True)
class MonitorState:
    """What one monitoring run found.

    Attributes:
        pipeline: the pipeline.
        as_of: the run's clock, UTC.
        drift: of each column.
        verdicts: of each check.
        performance: how good the champion is by name, such as `auc`; what is not finite is not known.
    """

    pipeline: str
    as_of: datetime
    drift: DriftVerdict
    verdicts: Mapping[str, Verdict]
    performance: Mapping[str, float] = field(default_factory=dict)


class MonitorMetrics(Collector):
    """The metrics of one state, in a registry of its own; what is not known is left out.

    Args:
        state: what is told.
    """

    def __init__(self, state: MonitorState) -> None:
        self.state = state
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics of the state."""
        yield from _drift_metrics(self.state)
        yield from _check_metrics(self.state)


def report_monitoring(settings: Settings, state: MonitorState) -> tuple[str, ...]:
    """Write the metrics to PERENNIAL_HOME/metrics/PIPELINE.monitor.prom and push them if so set.

    Args:
        settings: where they go.
        state: what they tell.

    Returns:
        What went wrong, in sentences.
    """
    registry = MonitorMetrics(state).registry
    return publish(settings, registry, state.pipeline, file=f"{state.pipeline}.monitor", job=JOB)


def _drift_metrics(state: MonitorState) -> Iterator[Metric]:
    by_feature = ("pipeline", "feature")
    psi = GaugeMetricFamily(
        "perennial_drift_psi",
        "Population stability index of the last monitored window against the champion's reference.",
        labels=by_feature,
    )
    missing = GaugeMetricFamily(
        "perennial_drift_missing_rate", "Share of the window's rows without a value, 0 to 1.", labels=by_feature
    )
    status = GaugeMetricFamily(
        "perennial_drift_status",
        "Whether the column drifted: 0 no, 1 too little to tell, 2 could not be checked, 3 yes.",
        labels=by_feature,
    )
    for found in state.drift.features:
        labels = (state.pipeline, found.feature)
        for gauge, value in ((psi, found.psi), (missing, found.missing_rate_current), (status, float(found.status))):
            if math.isfinite(value):
                gauge.add_metric(labels, value)
    yield from (psi, missing, status)


def _check_metrics(state: MonitorState) -> Iterator[Metric]:
    verdicts = GaugeMetricFamily(
        "perennial_verdict_status",
        "How the check ended: 0 pass, 1 inconclusive, 2 error, 3 fail.",
        labels=("pipeline", "check"),
    )
    performance = GaugeMetricFamily(
        "perennial_performance", "How good the champion is on predictions with labels.", labels=("pipeline", "metric")
    )
    at = GaugeMetricFamily(
        "perennial_monitor_timestamp_seconds", "End of the last monitored window.", labels=("pipeline",)
    )
    for check, verdict in state.verdicts.items():
        verdicts.add_metric((state.pipeline, check), float(verdict.status))
    for name, value in state.performance.items():
        if math.isfinite(value):
            performance.add_metric((state.pipeline, name), value)
    at.add_metric((state.pipeline,), state.as_of.timestamp())
    yield from (verdicts, performance, at)
