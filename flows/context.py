"""What every flow needs: the pipeline, the lake, the ledger, the clock, and events for automations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from features.lake import Lake
from perennial.errors import StateError
from perennial.settings import Settings, settings
from pipelines.spec import PipelineSpec, add_pipelines_dir, load_pipeline
from rollout.ledger import Ledger, Model

if TYPE_CHECKING:
    from serving.predictor import Predictor


@dataclass(frozen=True)
class Context:
    """A pipeline and where its state is."""

    settings: Settings
    spec: PipelineSpec
    lake: Lake
    ledger: Ledger


@lru_cache(maxsize=8)
def open_context(pipeline: str) -> Context:
    """The pipeline's context, opened once a process.

    Raises:
        UsageError: there is no such pipeline.
    """
    current = settings()
    if current.pipelines_dir:
        add_pipelines_dir(current.pipelines_dir)
    spec = load_pipeline(pipeline)
    current.root.mkdir(parents=True, exist_ok=True)
    return Context(current, spec, Lake(current, spec.name), Ledger(current.ledger_url, current.database_secret_arn))


def moment(as_of: datetime | None) -> datetime:
    """The run's clock: `as_of` in UTC (without a zone it is meant as UTC), or now."""
    if as_of is None:
        return datetime.now(UTC)
    utc = as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of.astimezone(UTC)
    # Prefect's own times are of Pendulum's class, which forgets its zone when Polars computes with it.
    return datetime.combine(utc.date(), utc.time(), UTC)


def due(as_of: datetime | None) -> datetime:
    """The clock of a run that may begin again on another machine: `as_of` in UTC, or when Prefect first meant it to start."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    meant = context.flow_run.expected_start_time if context and context.flow_run else None
    return moment(as_of) if as_of or meant is None else min(moment(meant), moment(None))


def champion(context: Context) -> Model | None:
    """The model that serves; None before the first promotion."""
    state = context.ledger.state(context.spec.name)
    return state.champion if state else None


@lru_cache(maxsize=4)
def predictor(uri: str) -> Predictor:
    """The model of a bundle, loaded once a process: a version never changes.

    Raises:
        StateError: there is no bundle at the address.
    """
    from serving.predictor import load_predictor

    return load_predictor(uri)


def announce(event: str, pipeline: str, payload: dict[str, Any]) -> None:
    """Emit a Prefect event that automations can start from.

    Raises:
        StateError: the event could not be handed over.
    """
    from prefect.events import emit_event

    resource = {"prefect.resource.id": f"perennial.pipeline.{pipeline}", "prefect.resource.name": pipeline}
    if emit_event(event=event, resource=resource, payload={"pipeline": pipeline, **payload}) is None:
        raise StateError(f"event {event} of {pipeline} was not emitted; is PREFECT_API_URL the server's address?")
