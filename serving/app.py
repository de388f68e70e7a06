"""The scoring service: HTTP in, scores out. No training, no flows, no model registry: the ledger says what to load."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
import polars as pl
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from perennial.errors import PerennialError, StageError, StateError, UsageError
from perennial.settings import Settings
from pipelines.spec import PipelineSpec, add_pipelines_dir, load_pipeline, pipeline_names
from rollout.ledger import Ledger
from serving.events import events_frame
from serving.metrics import Metrics
from serving.predictor import load_predictor
from serving.router import Poller, Predictor, Route, Router

LOG = logging.getLogger(__name__)

MAX_EVENTS = 10_000


class FeatureSource(Protocol):
    """The model's inputs for scored events."""

    def frame(self, scored: pl.DataFrame) -> pl.DataFrame:
        """One row an event, in order."""
        ...


class ScoreRequest(BaseModel):
    """Events to score, each as on its topic."""

    events: list[dict[str, Any]] = Field(description=f"At most {MAX_EVENTS} events.")


class Prediction(BaseModel):
    """The answer to one event."""

    key: Any = Field(description="The event's key field.")
    score: float = Field(description="Probability of the positive class, 0 to 1.")
    version: str = Field(description="The model that answered.")


class ScoreResponse(BaseModel):
    """One prediction an event, in order."""

    predictions: list[Prediction]


def open_online_features(spec: PipelineSpec, settings: Settings) -> FeatureSource:
    """The pipeline's online feature store."""
    from features.store import OnlineFeatures

    return OnlineFeatures(spec, settings)


def create_app(
    settings: Settings,
    *,
    specs: Mapping[str, PipelineSpec] | None = None,
    load: Callable[[str], Predictor] = load_predictor,
    open_features: Callable[[PipelineSpec, Settings], FeatureSource] = open_online_features,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    poll_s: float = 0.5,
) -> FastAPI:
    """The service as an ASGI application; it starts reading the ledger when it is started, and needs nothing up before.

    Args:
        settings: where the ledger and the online store are.
        specs: the pipelines to answer for; None = every pipeline there is.
        load: uri of a bundle -> its predictor.
        open_features: opens a pipeline's online features.
        now: wall clock, UTC.
        poll_s: seconds between two readings of the ledger.
    """
    specs = _all_pipelines(settings) if specs is None else specs
    metrics = Metrics()
    ledger = Ledger(settings.ledger_url, settings.database_secret_arn)
    router = Router(ledger, tuple(specs), load, metrics, now)
    metrics.watch(router, now)
    features = _Features(specs, settings, open_features)

    def work() -> None:
        router.refresh()
        features.warm(router.routes)
        router.flush()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller = Poller(work, poll_s)
        poller.start()
        if not settings.online_store_url:
            # Importing Feast takes a second or more, which the first champion should not have to wait for. Redis is read
            # without it.
            threading.Thread(target=importlib.import_module, args=("features.feast_lake",), daemon=True).start()
        yield
        poller.stop()
        router.flush()
        ledger.close()

    app = FastAPI(title="perennial scoring service", lifespan=lifespan)
    app.add_exception_handler(PerennialError, _sentence)
    app.add_exception_handler(RequestValidationError, _invalid_request)

    def spec_of(pipeline: str) -> PipelineSpec:
        if pipeline not in specs:
            raise _UnknownPipelineError(f"unknown pipeline {pipeline!r}; there is: {', '.join(specs) or 'none'}")
        return specs[pipeline]

    # Not a coroutine: a slow model occupies one of the pool's threads, and not the loop that answers everybody else.
    @app.post("/v1/{pipeline}/score", response_model=ScoreResponse)
    def score(pipeline: str, request: ScoreRequest) -> Response:
        """Score events with the champion, or the canary for its share of the keys."""
        spec = spec_of(pipeline)
        if len(request.events) > MAX_EVENTS:
            raise UsageError(f"{len(request.events)} events in one request; send at most {MAX_EVENTS} at a time")
        events = events_frame(request.events, spec.event(spec.scored.topic))
        keys = events.get_column(spec.scored.key).to_list()
        if not keys:
            return _json({"predictions": []})
        router.answering(pipeline)  # before the features, which are opened only once there is a champion
        answers = router.score(pipeline, keys, features.frame(pipeline, events))
        rows = zip(keys, answers.scores.tolist(), answers.versions, strict=True)
        return _json(
            {"predictions": [{"key": key, "score": score, "version": version} for key, score, version in rows]}
        )

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is up."""
        return {"status": "up"}

    @app.get("/ready")
    async def ready() -> Response:
        """200 once every released pipeline can be answered for; 503 says what is missing."""
        routes = router.routes
        missing = [
            f"pipeline {name!r}: {_lacks(route) or features.problem(name)}"
            for name, route in routes.items()
            if _lacks(route) or features.problem(name)
        ]
        if not routes:
            missing = [f"no champion is loaded for any pipeline ({', '.join(specs) or 'there are none'}); release one"]
        if missing:
            return _json({"detail": "; ".join(missing)}, status=503)
        return _json({"status": "ready", "pipelines": sorted(routes)})

    @app.get("/v1/{pipeline}/serving")
    async def serving(pipeline: str) -> Response:
        """Who serves which share on this replica, since when and why."""
        spec_of(pipeline)
        if pipeline not in router.routes:
            raise StateError(f"nothing was released for pipeline {pipeline!r} yet, or the ledger was not read yet")
        return _json(_serving(router.routes[pipeline], now()))

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


class _UnknownPipelineError(UsageError):
    """The path names a pipeline that is not there."""


class _Features:
    """Online features of each pipeline, opened once its first champion is there: before, the store may not exist."""

    def __init__(
        self,
        specs: Mapping[str, PipelineSpec],
        settings: Settings,
        open_features: Callable[[PipelineSpec, Settings], FeatureSource],
    ) -> None:
        self._specs = specs
        self._settings = settings
        self._open_features = open_features
        self._opened: dict[str, FeatureSource] = {}
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()

    def warm(self, routes: Mapping[str, Route]) -> None:
        """Open what is not open yet for pipelines with a champion, so that no request has to wait for it."""
        for pipeline, route in routes.items():
            if route.champion and pipeline not in self._opened:
                try:
                    self._open(pipeline)
                except PerennialError as error:
                    LOG.warning("%s", error)

    def frame(self, pipeline: str, events: pl.DataFrame) -> pl.DataFrame:
        """The model's inputs, one row an event; StageError if they cannot be had."""
        source = self._opened.get(pipeline) or self._open(pipeline)
        try:
            return source.frame(events)
        except PerennialError:
            raise
        except Exception as error:
            LOG.exception("the features of pipeline %s cannot be read", pipeline)
            raise StageError(f"the features of pipeline {pipeline!r} cannot be read: {error}") from error

    def problem(self, pipeline: str) -> str:
        """Why the pipeline's features are not open; empty if they are."""
        return "" if pipeline in self._opened else self._problems.get(pipeline, "its features are being opened")

    def _open(self, pipeline: str) -> FeatureSource:
        with self._lock:
            if pipeline not in self._opened:
                try:
                    self._opened[pipeline] = self._open_features(self._specs[pipeline], self._settings)
                except Exception as error:
                    self._problems[pipeline] = f"its features cannot be opened: {error}"
                    raise StageError(f"pipeline {pipeline!r}: {self._problems[pipeline]}") from error
            return self._opened[pipeline]


def _all_pipelines(settings: Settings) -> dict[str, PipelineSpec]:
    if settings.pipelines_dir is not None:
        add_pipelines_dir(settings.pipelines_dir)
    return {name: load_pipeline(name) for name in pipeline_names()}


def _lacks(route: Route) -> str:
    return "" if route.champion else route.problem


def _serving(route: Route, now: datetime) -> dict[str, Any]:
    entry = route.entry
    share_pct = route.share_pct(now)
    champion = route.champion[0] if route.champion else None
    return {
        "pipeline": entry.pipeline,
        "champion": champion and {"version": champion.version, "uri": champion.uri, "share_pct": 100.0 - share_pct},
        "challenger": entry.challenger
        and {"version": entry.challenger.version, "uri": entry.challenger.uri, "share_pct": share_pct},
        "sequence": entry.sequence,
        "action": entry.action,
        "since": entry.at,
        "reason": entry.reason,
        "as_of": entry.as_of,
        "lease_until": route.lease_until,
        "lease_alive": route.lease_until is not None and now < route.lease_until,
        "problem": route.problem,
        "read_at": route.read_at,
    }


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")


async def _sentence(_: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, _UnknownPipelineError) else 422 if isinstance(error, UsageError) else 503
    return _json({"detail": str(error)}, status)


async def _invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _json({"detail": f'{where}: {first["msg"]}; send {{"events": [{{...}}, ...]}}'}, 422)
