"""What Prometheus scrapes: answers, latency, shares, and how old the router's knowledge is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rollout.observation import ArmObservation

if TYPE_CHECKING:
    from serving.router import Router

Arm = Literal["champion", "challenger"]

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one scoring service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("pipeline", "version", "arm")
        self._requests = Counter(
            "perennial_requests",
            "Rows a model was asked to score; outcome is ok, invalid (NaN or outside 0..1) or error (no score).",
            (*labels, "outcome"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "perennial_predict_seconds",
            "Seconds a model took for one call.",
            labels,
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.ledger_failures = Counter(
            "perennial_ledger_failures", "Times the ledger could not be read or written.", registry=self.registry
        )
        self.load_failures = Counter(
            "perennial_model_load_failures",
            "Times a model of the ledger could not be loaded.",
            ("pipeline", "version"),
            registry=self.registry,
        )

    def count(self, pipeline: str, version: str, arm: Arm, observed: ArmObservation, elapsed_s: float) -> None:
        """Count one call of a model."""
        outcomes = {
            "ok": observed.requests - observed.errors,
            "invalid": observed.invalid,
            "error": observed.errors - observed.invalid,
        }
        for outcome, rows in outcomes.items():
            if rows:
                self._requests.labels(pipeline, version, arm, outcome).inc(rows)
        if observed.calls:
            self._latency.labels(pipeline, version, arm).observe(elapsed_s)

    def watch(self, router: Router, now: Callable[[], datetime]) -> None:
        """Report the router's shares and the age of its knowledge, as they are at each scrape."""
        self.registry.register(_RouteCollector(router, now))

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _RouteCollector(Collector):
    def __init__(self, router: Router, now: Callable[[], datetime]) -> None:
        self._router = router
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        share = GaugeMetricFamily(
            "perennial_share_pct",
            "Share of the keys a model answers, in percent.",
            labels=("pipeline", "version", "arm"),
        )
        age = GaugeMetricFamily(
            "perennial_ledger_age_seconds", "Seconds since the ledger was read.", labels=("pipeline",)
        )
        now = self._now()
        for pipeline, route in self._router.routes.items():
            canary_pct = route.share_pct(now)
            if route.champion:
                share.add_metric((pipeline, route.champion[0].version, "champion"), 100.0 - canary_pct)
            if route.entry.challenger:
                share.add_metric((pipeline, route.entry.challenger.version, "challenger"), canary_pct)
            age.add_metric((pipeline,), (now - route.read_at).total_seconds())
        yield share
        yield age
