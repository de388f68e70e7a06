"""Kafka -> event lake -> features -> online store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from prefect import flow

from features.ingest import TopicIngest, ViewRefresh, ingest_topic, refresh_view
from flows.context import moment, open_context
from flows.stage import stage


@dataclass(frozen=True)
class IngestSummary:
    """What one ingest run did: per topic, and per feature view."""

    topics: tuple[TopicIngest, ...]
    views: tuple[ViewRefresh, ...]

    @property
    def ingested(self) -> int:
        """Records that became events."""
        return sum(t.ingested for t in self.topics)

    @property
    def dead_lettered(self) -> int:
        """Records that did not."""
        return sum(t.dead_lettered for t in self.topics)


@stage(name="take in {topic}", again_after_conflict=3)
def take_in(pipeline: str, topic: str, created: datetime) -> TopicIngest:
    """Append what is new on a topic to the lake, with its positions."""
    context = open_context(pipeline)
    return ingest_topic(context.settings, context.lake, context.spec.event(topic), created)


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
    spec, now = open_context(pipeline).spec, moment(as_of)
    topics = tuple([await take_in(pipeline, event.topic, now) for event in spec.events])
    views = tuple([await build_view(pipeline, view.name) for view in spec.views])
    return IngestSummary(topics, views)
