"""Prometheus metrics of a pipeline's stream.

They are what the lake says, so that they are right whoever ingests and however often it is restarted. The follower serves
them; each micro-batch writes them to a file and pushes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import basic_auth_handler, default_handler, push_to_gateway, write_to_textfile
from prometheus_client.registry import Collector

from features.arrival import ARRIVALS, Arrivals, Counts
from features.check_log import LastCheck, last_check
from features.lake import Lake
from features.online_check import KINDS
from features.store import view_table
from perennial.errors import UsageError, told
from perennial.settings import Settings
from perennial.web_addresses import user_of, without_user
from pipelines.spec import PipelineSpec

PUSH_WITHIN_S = 5.0


@dataclass(frozen=True)
class TopicState:
    """A topic since its first record.

    Attributes:
        topic: the topic.
        counts: what its records were.
        newest: newest event time in the lake; None before the first event.
        lag_rows: records that the broker held and the lake did not, when it was last asked; None if it was not.
    """

    topic: str
    counts: Counts
    newest: datetime | None
    lag_rows: int | None


@dataclass(frozen=True)
class StreamState:
    """What the lake says of a pipeline's stream.

    Attributes:
        pipeline: the pipeline.
        topics: its topics.
        views: newest event time that each view's features hold; None before the first.
        check: the last comparison of online with offline; None before the first.
    """

    pipeline: str
    topics: tuple[TopicState, ...]
    views: Mapping[str, datetime | None]
    check: LastCheck | None


def observe(lake: Lake, spec: PipelineSpec, lag_rows: Mapping[str, int]) -> StreamState:
    """Ask the lake.

    Args:
        lake: the pipeline's lake.
        spec: the pipeline.
        lag_rows: what the broker said, by topic.
    """
    topics = []
    for event in spec.events:
        arrivals = Arrivals.from_json(lake.property(event.table, ARRIVALS))
        newest = max(arrivals.watermarks.values(), default=None)
        topics.append(TopicState(event.topic, arrivals.counts, newest, lag_rows.get(event.topic)))
    by_topic = {state.topic: state.newest for state in topics}
    views = {view.name: _newest(lake, view_table(view), by_topic[view.topic]) for view in spec.views}
    return StreamState(spec.name, tuple(topics), views, last_check(lake))


def _newest(lake: Lake, table: str, of_topic: datetime | None) -> datetime | None:
    """Newest event time of a view's table, mostly found in the files of the topic's last day."""
    found = lake.newest(table, since=of_topic - timedelta(days=1)) if of_topic else None
    return found or lake.newest(table)


class StreamMetrics(Collector):
    """The metrics of one state, in a registry of its own.

    Args:
        state: what is told; another one may take its place at any time.
        clock: what freshness is measured by.
    """

    def __init__(self, state: StreamState, clock: Callable[[], datetime]) -> None:
        self.state = state
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics of the state as it is now; what is not known is left out."""
        state = self.state
        yield from _topic_metrics(state)
        yield from _view_metrics(state, self._clock())
        if state.check is not None:
            yield from _check_metrics(state.pipeline, state.check)


def _topic_metrics(state: StreamState) -> Iterator[Metric]:
    by_topic = ("pipeline", "topic")
    events = CounterMetricFamily(
        "perennial_events",
        "Records that became events in the lake, duplicates and late ones included.",
        labels=by_topic,
    )
    letters = CounterMetricFamily(
        "perennial_dead_letters",
        "Records that were not valid events; the lake keeps them with the reason.",
        labels=by_topic,
    )
    late = CounterMetricFamily(
        "perennial_late_events",
        "Events that came after a newer one of their partition; outcome is corrected (the features they belong to) or "
        "too_late (kept, counted nowhere).",
        labels=(*by_topic, "outcome"),
    )
    duplicates = CounterMetricFamily(
        "perennial_duplicate_events", "Events that were here before; features count them once.", labels=by_topic
    )
    lag = GaugeMetricFamily(
        "perennial_consumer_lag_records",
        "Records that the broker held and the lake did not, after the last commit.",
        labels=by_topic,
    )
    newest = GaugeMetricFamily(
        "perennial_newest_event_timestamp_seconds", "Event time of the newest event in the lake.", labels=by_topic
    )
    for topic in state.topics:
        labels, counts = (state.pipeline, topic.topic), topic.counts
        events.add_metric(labels, counts.ingested)
        letters.add_metric(labels, counts.dead_lettered)
        late.add_metric((*labels, "corrected"), counts.late - counts.too_late)
        late.add_metric((*labels, "too_late"), counts.too_late)
        duplicates.add_metric(labels, counts.duplicates)
        if topic.lag_rows is not None:
            lag.add_metric(labels, topic.lag_rows)
        if topic.newest is not None:
            newest.add_metric(labels, topic.newest.timestamp())
    yield from (events, letters, late, duplicates, lag, newest)


def _view_metrics(state: StreamState, now: datetime) -> Iterator[Metric]:
    by_view = ("pipeline", "view")
    newest = GaugeMetricFamily(
        "perennial_newest_feature_timestamp_seconds",
        "Event time of the newest event that the view's features hold.",
        labels=by_view,
    )
    freshness = GaugeMetricFamily(
        "perennial_feature_freshness_seconds",
        "Seconds from the newest event that the view's features hold to the clock of the run, or of the follower.",
        labels=by_view,
    )
    for view, at in state.views.items():
        if at is not None:
            newest.add_metric((state.pipeline, view), at.timestamp())
            freshness.add_metric((state.pipeline, view), (now - at).total_seconds())
    yield from (newest, freshness)


def _check_metrics(pipeline: str, check: LastCheck) -> Iterator[Metric]:
    differences = GaugeMetricFamily(
        "perennial_online_differences",
        "Keys whose online features were not the newest offline ones at the last check, by kind of difference.",
        labels=("pipeline", "view", "kind"),
    )
    keys = GaugeMetricFamily(
        "perennial_online_checked_keys", "Keys that the last check compared.", labels=("pipeline", "view")
    )
    at = GaugeMetricFamily(
        "perennial_online_check_timestamp_seconds", "When online was last compared with offline.", labels=("pipeline",)
    )
    at.add_metric((pipeline,), check.at.timestamp())
    for view, looked_at in check.keys.items():
        keys.add_metric((pipeline, view), looked_at)
        # Nothing to compare is not the same as no difference.
        for kind in KINDS if looked_at else ():
            differences.add_metric((pipeline, view, kind.replace(" ", "_")), check.differences[view].get(kind, 0))
    yield from (differences, keys, at)


def report(settings: Settings, state: StreamState, now: datetime) -> tuple[str, ...]:
    """Write and push the metrics of a stream, as `publish` does.

    Args:
        settings: where they go.
        state: what they tell.
        now: the run's clock.

    Returns:
        What went wrong, in sentences.
    """
    registry = StreamMetrics(state, lambda: now).registry
    return publish(settings, registry, state.pipeline, file=state.pipeline, job="perennial")


def publish(settings: Settings, registry: CollectorRegistry, pipeline: str, file: str, job: str) -> tuple[str, ...]:
    """Write metrics to PERENNIAL_HOME/metrics/FILE.prom, for a textfile collector, and push them if so set.

    Args:
        settings: where they go.
        registry: the metrics.
        pipeline: whose metrics they are.
        file: name of the file, which these metrics have for themselves.
        job: the Pushgateway's name of who pushes; a push takes the place of the one before of that job and pipeline.

    Returns:
        What went wrong, in sentences: what is told of a run must not make it fail.
    """
    wrong = []
    path = settings.root / "metrics" / f"{file}.prom"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry)
    except OSError as error:
        wrong.append(f"metrics were not written to {path}: {told(error)}")
    if settings.pushgateway_url:
        try:
            _push(settings.pushgateway_url, job, pipeline, registry)
        except (OSError, HTTPException, ValueError) as error:
            where = without_user(settings.pushgateway_url)
            wrong.append(
                f"metrics were not pushed to {where} ({error}); see whether the Pushgateway is up and "
                "PERENNIAL_PUSHGATEWAY_URL is its address"
            )
    return tuple(wrong)


def _push(url: str, job: str, pipeline: str, registry: CollectorRegistry) -> None:
    user = user_of(url)

    def send(**request: Any) -> Callable[[], None]:
        if user is None:
            return default_handler(**request)
        return basic_auth_handler(**request, username=user[0], password=user[1])

    key = {"pipeline": pipeline}
    push_to_gateway(without_user(url), job, registry, grouping_key=key, timeout=PUSH_WITHIN_S, handler=send)


def serve(metrics: StreamMetrics, host: str, port: int) -> tuple[str, Callable[[], None]]:
    """Answer /metrics in threads of its own.

    Args:
        metrics: what is told.
        host: address to listen on.
        port: 0 takes a free one.

    Returns:
        The address, and what ends it.

    Raises:
        UsageError: the port cannot be had.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise UsageError(f"--metrics-port {port} cannot be had ({error.strerror}); choose a free one") from error

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://{host}:{server.server_port}/metrics", end
