"""Kafka -> event lake -> features -> online store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact

from features.built import warnings
from features.ingest import TopicIngest, ViewRefresh, ingest_topics, refresh_view
from features.metrics import StreamState, observe, report
from flows.context import moment, open_context
from flows.stage import stage


@dataclass(frozen=True)
class IngestSummary:
    """What one ingest run did.

    Attributes:
        topics: per topic.
        views: per feature view.
        warnings: in sentences, what could not be told to Prometheus, and views that want a backfill.
    """

    topics: tuple[TopicIngest, ...]
    views: tuple[ViewRefresh, ...]
    warnings: tuple[str, ...] = ()

    @property
    def ingested(self) -> int:
        """Records that became events."""
        return sum(t.ingested for t in self.topics)

    @property
    def dead_lettered(self) -> int:
        """Records that did not."""
        return sum(t.dead_lettered for t in self.topics)


@stage(name="take in events")
def take_in(pipeline: str, created: datetime) -> tuple[TopicIngest, ...]:
    """Append what is new on the topics to the lake, with their positions."""
    context = open_context(pipeline)
    return ingest_topics(context.settings, context.lake, context.spec.events, created)


@stage(name="features {view}", again_after_conflict=3)
def build_view(pipeline: str, view: str) -> ViewRefresh:
    """Bring a feature view up to the lake's events, and its newest values online."""
    context = open_context(pipeline)
    wanted = next(v for v in context.spec.views if v.name == view)
    return refresh_view(context.settings, context.lake, context.spec, wanted)


@flow(name="ingest", flow_run_name="ingest {pipeline}", validate_parameters=True)
async def ingest(pipeline: str = "flights", as_of: datetime | None = None) -> IngestSummary:
    """Take in what Kafka holds, and build features from it.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The run's clock in UTC; none = now.
    """
    context, now = open_context(pipeline), moment(as_of)
    topics = await take_in(pipeline, now)
    views = tuple([await build_view(pipeline, view.name) for view in context.spec.views])
    lag_rows = {topic.topic: topic.lag_rows for topic in topics}
    state = await asyncio.to_thread(observe, context.lake, context.spec, lag_rows)
    to_backfill = await asyncio.to_thread(warnings, context.lake, context.spec)
    not_reported = await asyncio.to_thread(report, context.settings, state, now)
    summary = IngestSummary(topics, views, (*not_reported, *to_backfill))
    for warning in summary.warnings:
        get_run_logger().warning(warning)
    await acreate_markdown_artifact(
        describe(summary, state, now),
        key=f"ingest-{pipeline.replace('_', '-')}",
        description=f"What was taken in for {pipeline}",
    )
    return summary


def describe(summary: IngestSummary, state: StreamState, now: datetime) -> str:
    """What a run did, for a person: a table of the topics and one of the views, as Markdown."""
    lines = [
        f"# {state.pipeline}, ingest at {now:%Y-%m-%d %H:%M} UTC",
        "",
        "| topic | events | dead letters | late, corrected | too late | duplicates | behind | newest event (UTC) |",
        "| --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for topic in summary.topics:
        events, dead = topic.ingested, topic.dead_lettered
        late, too_late = topic.counts.late - topic.counts.too_late, topic.counts.too_late
        numbers = (
            f"{events:,}",
            _share(dead, events + dead),
            _share(late, events),
            _share(too_late, events),
            _share(topic.counts.duplicates, events),
            f"{topic.lag_rows:,}",
        )
        lines.append(f"| {topic.topic} | {' | '.join(numbers)} | {_at(topic.newest)} |")
    lines += [
        "",
        "| view | new feature rows | keys online | newest event (UTC) | age of it |",
        "| --- | --: | --: | --- | --: |",
    ]
    for view in summary.views:
        newest = state.views[view.view]
        # An event may be a little ahead of the clock.
        age = str(max(timedelta(), timedelta(seconds=round((now - newest).total_seconds())))) if newest else "-"
        lines.append(f"| {view.view} | {view.rows:,} | {view.online_keys:,} | {_at(newest)} | {age} |")
    lines += [f"\n**{warning}**" for warning in summary.warnings]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.2%})" if part else "0"


def _at(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"
