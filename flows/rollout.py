"""Challenger -> canary -> judged on live traffic -> promoted, or rolled back."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.context import announce, moment, open_context
from flows.stage import stage
from perennial.errors import StageError, UsageError
from rollout.controller import release, run_rollout, was_rolled_back
from rollout.ledger import Entry, Model
from training import registry
from training.registry import ModelVersion

EVENTS = {"promote": "perennial.rollout.promoted", "rollback": "perennial.rollout.rolled-back"}


@stage()
def start_canary(pipeline: str, as_of: datetime | None, version: str | None) -> Entry | None:
    """Give the challenger its first share: the version asked for, or the registered one unless something speaks against it."""
    context = open_context(pipeline)
    state = context.ledger.state(pipeline)
    found = registry.get(context.settings.mlflow_tracking_uri, pipeline, version or registry.CHALLENGER)
    if version is None:
        if found is None or (state is not None and state.challenger is not None):
            return state
        if stale := outdated(found, state):
            get_run_logger().warning(stale)
            return state
        gate = found.tags.get(registry.GATE)
        reason = f"version {found.version} passed its gate" if gate == "accepted" else f"its gate says {gate!r}"
    elif found is None:
        raise UsageError(f"{pipeline} has no version {version!r} in MLflow; `perennial retrain {pipeline}` makes one")
    else:
        reason = f"version {found.version} was released by hand"
    return release(
        context.ledger,
        pipeline,
        Model(found.version, found.uri),
        context.spec.rollout,
        reason,
        as_of,
        moment(None),
        by_hand=version is not None,
    )


def outdated(challenger: ModelVersion, state: Entry | None) -> str | None:
    """Why the gate's word on a challenger no longer counts, if so: it was held against a version that serves no more."""
    compared, serves = challenger.tags.get(registry.COMPARED_WITH), state.champion if state else None
    if not compared or serves is None or compared == serves.version or challenger.version == serves.version:
        return None
    return (
        f"version {challenger.version} was compared with version {compared}, but version {serves.version} serves now: "
        "retrain, or release it by hand"
    )


@task(cache_policy=NO_CACHE)
async def judge_canary(pipeline: str) -> Entry:
    """Judge the canary on live traffic, step by step, until it is promoted or rolled back."""
    context, log, cancelled = open_context(pipeline), get_run_logger(), threading.Event()

    def tell(entry: Entry) -> None:
        log.info("%s: %g %% to the challenger. %s", entry.action, entry.share_pct, entry.reason)

    def wait(seconds: float) -> None:
        if cancelled.wait(seconds):
            raise StageError(f"the rollout of {pipeline} was cancelled; the next one goes on with its canary")

    # In a thread, as a stage is; but it waits for minutes, and a cancelled run must not wait with it.
    try:
        return await asyncio.to_thread(
            run_rollout, context.ledger, pipeline, context.spec.rollout, lambda: moment(None), wait, tell
        )
    finally:
        cancelled.set()


@stage()
def settle(pipeline: str, entry: Entry) -> None:
    """Let MLflow's aliases say what the ledger says."""
    context = open_context(pipeline)
    uri = context.settings.mlflow_tracking_uri
    if entry.champion is not None:
        registry.set_alias(uri, pipeline, registry.CHAMPION, entry.champion.version)
    challenger = registry.get(uri, pipeline, registry.CHALLENGER)
    history = context.ledger.history(pipeline)
    if challenger and (
        (entry.champion and challenger.version == entry.champion.version)
        or was_rolled_back(history, Model(challenger.version, challenger.uri))
        or outdated(challenger, entry)
    ):
        registry.delete_alias(uri, pipeline, registry.CHALLENGER)


@flow(name="rollout", flow_run_name="rollout {pipeline}")
async def rollout(pipeline: str = "flights", as_of: datetime | None = None, version: str | None = None) -> str:
    """Bring the challenger into service behind a canary; go on with one that was left behind.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The moment the challenger was trained as of, for the record, UTC; none = now.
        version: A registered version to release by hand, past its gate; none = the challenger that passed its gate.
    """
    context = open_context(pipeline)
    before = context.ledger.state(pipeline)
    started = await start_canary(pipeline, moment(as_of) if as_of else None, version)
    if started is None:
        get_run_logger().info("%s has neither champion nor challenger; run `perennial retrain %s`", pipeline, pipeline)
        return "nothing to roll out"
    ended = await judge_canary(pipeline) if started.challenger else started
    await settle(pipeline, ended)
    if before is not None and before.sequence == ended.sequence:
        return f"version {ended.champion.version if ended.champion else None} serves; there is no challenger"
    await publish(pipeline, context.ledger.history(pipeline))
    serves = ended.champion.version if ended.champion else None
    if event := EVENTS.get(ended.action):
        announce(event, pipeline, {"version": serves, "reason": ended.reason, "sequence": ended.sequence})
    return f"{ended.action}: version {serves} serves. {ended.reason}"


async def publish(pipeline: str, history: list[Entry]) -> None:
    """What a person sees in the Prefect UI: who got which share, when and why, newest first."""
    table = [
        {
            "at (UTC)": f"{e.at:%Y-%m-%d %H:%M:%S}",
            "what": e.action,
            "champion": e.champion.version if e.champion else "",
            "challenger": e.challenger.version if e.challenger else "",
            "share %": f"{e.share_pct:g}",
            "why": e.reason,
        }
        for e in reversed(history)
    ]
    key = f"traffic-{pipeline.replace('_', '-')}"
    await acreate_table_artifact(table, key=key, description=f"Who serves {pipeline}, since when and why")
