"""Who answers a request: reads the ledger, splits the keys, and never lets a canary harm an answer.

The champion scores every row, the challenger those of its share. So each canary row has two scores: they are the pairs
the judge compares, and if the challenger raises or answers nonsense the champion's score is there already.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import numpy as np
import polars as pl

from perennial.errors import PerennialError, StageError, StateError
from rollout.ledger import Entry, Ledger, Model
from rollout.observation import ArmObservation, ObservationRow, Scores, failed, is_valid, scored
from serving.metrics import Arm, Metrics

LOG = logging.getLogger(__name__)


class Predictor(Protocol):
    """A loaded model: n rows in, (n,) float64 probabilities out."""

    def predict(self, frame: pl.DataFrame) -> Scores:
        """Score the rows in order."""
        ...


@dataclass(frozen=True)
class Route:
    """How requests of one pipeline are answered now.

    Attributes:
        entry: the ledger's latest entry.
        lease_until: when the canary ends if nobody renews it, UTC.
        champion: the model that answers and its predictor; None until one could be loaded.
        challenger: the canary's predictor; None if there is no canary or it could not be loaded.
        problem: why a model of the entry could not be loaded; empty if all is well.
        read_at: wall-clock time at which the ledger was last read, UTC.
    """

    entry: Entry
    lease_until: datetime | None
    champion: tuple[Model, Predictor] | None
    challenger: Predictor | None
    problem: str
    read_at: datetime

    def share_pct(self, now: datetime) -> float:
        """The challenger's share of the keys now: the entry's, or 0 once the lease has run out."""
        alive = self.lease_until is not None and now < self.lease_until
        return self.entry.share_pct if self.entry.challenger is not None and alive else 0.0


@dataclass(frozen=True)
class Answers:
    """Scores of n rows, and the version that gave each."""

    scores: Scores
    versions: tuple[str, ...]


class Router:
    """Routes requests by the ledger; `refresh` and `flush` are called from a background thread, `score` from any.

    Args:
        ledger: who serves what.
        pipelines: the pipelines to answer for.
        load: uri of a bundle -> its predictor; it may raise anything.
        metrics: where answers are counted.
        now: wall clock, UTC.
    """

    def __init__(
        self,
        ledger: Ledger,
        pipelines: Sequence[str],
        load: Callable[[str], Predictor],
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._pipelines = tuple(pipelines)
        self._load = load
        self._metrics = metrics
        self._now = now
        # A name of its own for each start, so that the flush numbers of two processes never meet.
        self._replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._routes: dict[str, Route] = {}
        self._seen: dict[tuple[str, int, str], tuple[datetime, ArmObservation]] = {}
        self._seen_lock = threading.Lock()
        self._unsent: list[ObservationRow] = []
        self._flushes = 0
        self._told: set[tuple[str, int, str]] = set()
        self._flush_lock = threading.Lock()

    @property
    def routes(self) -> dict[str, Route]:
        """The route of each pipeline that has a ledger entry."""
        return dict(self._routes)

    def refresh(self) -> None:
        """Read the ledger and load what is new. A ledger that does not answer leaves the last known state in force."""
        for pipeline in self._pipelines:
            try:
                entry, lease = self._ledger.state(pipeline), self._ledger.lease_until(pipeline)
            except PerennialError as error:
                self._metrics.ledger_failures.inc()
                LOG.warning("%s; pipeline %s goes on as it was", error, pipeline)
                continue
            if entry is not None:
                self._routes[pipeline] = self._route(entry, lease)

    def flush(self) -> None:
        """Send what was observed to the ledger; what it does not take is kept and sent again."""
        with self._flush_lock:
            if not self._unsent:
                with self._seen_lock:
                    seen, self._seen = self._seen, {}
                self._flushes += bool(seen)
                self._unsent = [
                    ObservationRow(*key, self._replica, self._flushes, at, observed)
                    for key, (at, observed) in seen.items()
                ]
            try:
                self._ledger.add_observations(self._unsent)
            except PerennialError as error:
                self._metrics.ledger_failures.inc()
                LOG.warning("%s; observations wait for the next flush", error)
            else:
                self._unsent = []

    def answering(self, pipeline: str) -> tuple[Route, Model, Predictor]:
        """The pipeline's route with its champion; StateError if none is loaded."""
        route = self._routes.get(pipeline)
        if route is None or route.champion is None:
            problem = route.problem if route else "nothing was released yet, or the ledger was not read yet"
            raise StateError(f"pipeline {pipeline!r} has no champion to answer: {problem}")
        return route, *route.champion

    def score(self, pipeline: str, keys: Sequence[object], features: pl.DataFrame) -> Answers:
        """Answer for each row.

        Args:
            pipeline: which model.
            keys: n keys; equal keys go to the same arm for as long as the canary lasts.
            features: n rows in the order of the keys.

        Returns:
            n scores in [0, 1] with their versions.

        Raises:
            StateError: no champion is loaded.
            StageError: the champion gave no usable score and no challenger's stands in for it.
        """
        route, model, predictor = self.answering(pipeline)
        champion = self._ask(route, model, "champion", predictor, features, None)
        answers = np.full(len(keys), np.nan) if champion is None else champion.copy()
        versions = np.full(len(keys), model.version, dtype=object)
        share_pct = route.share_pct(self._now())
        if share_pct > 0 and route.entry.challenger is not None:
            challenger = route.entry.challenger
            rows = np.fromiter((key_pct(challenger.version, key) < share_pct for key in keys), bool, len(keys))
            if rows.any():
                paired = np.full(int(rows.sum()), np.nan) if champion is None else champion[rows]
                canary = self._ask(route, challenger, "challenger", route.challenger, features.filter(rows), paired)
                if canary is not None:
                    usable = np.flatnonzero(rows)[is_valid(canary)]
                    answers[usable] = canary[is_valid(canary)]
                    versions[usable] = challenger.version
        if unanswered := len(answers) - int(is_valid(answers).sum()):
            raise StageError(
                f"model {model.version!r} of pipeline {pipeline!r} gave no usable score for {unanswered} of "
                f"{len(answers)} events; roll back or release another model"
            )
        return Answers(answers, tuple(versions))

    def _ask(
        self,
        route: Route,
        model: Model,
        arm: Arm,
        predictor: Predictor | None,
        features: pl.DataFrame,
        champion: Scores | None,
    ) -> Scores | None:
        """The model's scores, whatever they are; None if it raised or is not there. Counts what happened."""
        rows = features.height
        scores: Scores | None = None
        started = time.perf_counter()
        if predictor is not None:
            try:
                scores = np.asarray(predictor.predict(features), dtype=np.float64)
                if scores.shape != (rows,):
                    raise StageError(f"it answered {rows} rows with scores of shape {scores.shape}")
            except Exception:
                # A model is foreign code: nothing it raises may reach the user. Told once, counted each time.
                scores = None
                if (told := (route.entry.pipeline, route.entry.sequence, model.version)) not in self._told:
                    self._told.add(told)
                    LOG.warning("model %s of pipeline %s raised", model.version, route.entry.pipeline, exc_info=True)
        elapsed_s = time.perf_counter() - started
        observed = failed(rows) if scores is None else scored(scores, elapsed_s * 1e3, champion)
        self._metrics.count(route.entry.pipeline, model.version, arm, observed, elapsed_s)
        # Nobody judges a champion that is alone; a year of such rows would only fill the ledger.
        if route.entry.challenger is not None:
            key = (route.entry.pipeline, route.entry.sequence, model.version)
            with self._seen_lock:
                since, sum_so_far = self._seen.get(key) or (self._now(), ArmObservation())
                self._seen[key] = since, sum_so_far + observed
        return scores

    def _route(self, entry: Entry, lease: datetime | None) -> Route:
        before = self._routes.get(entry.pipeline)
        if before and before.entry == entry and not before.problem:
            return replace(before, lease_until=lease, read_at=self._now())
        loaded: dict[Model, Predictor] = {}
        if before and before.champion:
            loaded[before.champion[0]] = before.champion[1]
        if before and before.entry.challenger and before.challenger:
            loaded[before.entry.challenger] = before.challenger
        problems: list[str] = []
        champion = self._loaded(entry, entry.champion, loaded, problems)
        challenger = self._loaded(entry, entry.challenger, loaded, problems)
        problem = "; ".join(problems)
        if problem and (before is None or before.problem != problem):
            LOG.warning("pipeline %s: %s; trying again", entry.pipeline, problem)
        # A champion that cannot be loaded leaves the one before in its place: an older answer is better than none.
        kept = before.champion if before else None
        return Route(
            entry=entry,
            lease_until=lease,
            champion=(entry.champion, champion) if entry.champion and champion else kept,
            challenger=challenger,
            problem=problem,
            read_at=self._now(),
        )

    def _loaded(
        self, entry: Entry, model: Model | None, loaded: dict[Model, Predictor], problems: list[str]
    ) -> Predictor | None:
        if model is None or model in loaded:
            return loaded.get(model) if model else None
        try:
            return self._load(model.uri)
        except Exception as error:  # noqa: BLE001 - foreign code on foreign files: it is told, and tried again
            self._metrics.load_failures.labels(entry.pipeline, model.version).inc()
            problems.append(f"model {model.version!r} cannot be loaded: {error}")
            return None


class Poller:
    """Does some work every `poll_s` seconds in a thread of its own, until stopped."""

    def __init__(self, work: Callable[[], None], poll_s: float) -> None:
        self._work = work
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def start(self) -> None:
        """Begin; the first round starts at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round in progress."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._work()
            except Exception:
                # A defect in one round must not freeze the traffic for good.
                LOG.exception("a round of polling failed; trying again in %g s", self._poll_s)
            self._stopped.wait(self._poll_s)


def key_pct(challenger: str, key: object) -> float:
    """Where a key lies between 0 and 100, evenly and for ever the same; below the share it goes to the challenger.

    Salted with the challenger's version, so that it is not always the same keys that try what is new, while one that is
    in at 10 % stays in at 50 %.
    """
    digest = hashlib.blake2b(f"{challenger}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
