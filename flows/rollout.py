"""Challenger -> canary -> judged on live traffic -> promoted, or rolled back."""

from __future__ import annotations

import time
from datetime import datetime

from prefect import flow, get_run_logger
from prefect.artifacts import acreate_table_artifact

from flows.context import announce, moment, open_context
from flows.stage import stage
from rollout.controller import release, run_rollout
from rollout.ledger import Entry, Model
from training import registry


@stage()
def start_canary(pipeline: str, as_of: datetime | None) -> Entry | None:
    """Give the registered challenger its first share, unless it has one or was rolled back before."""
    context = open_context(pipeline)
    found = registry.get(context.settings.mlflow_tracking_uri, pipeline, registry.CHALLENGER)
    state = context.ledger.state(pipeline)
    if found is None or (state is not None and state.challenger is not None):
        return state
    challenger = Model(found.version, found.uri)
    if was_rolled_back(context.ledger.history(pipeline), challenger):
        return state
    reason = f"version {challenger.version} passed its gate"
    return release(context.ledger, pipeline, challenger, context.spec.rollout, reason, as_of, moment(None))


@stage()
def judge_canary(pipeline: str) -> Entry:
    """Judge the canary on live traffic, step by step, until it is promoted or rolled back."""
    context, log = open_context(pipeline), get_run_logger()

    def tell(entry: Entry) -> None:
        log.info("%s: %g %% to the challenger. %s", entry.action, entry.share_pct, entry.reason)

    return run_rollout(context.ledger, pipeline, context.spec.rollout, lambda: moment(None), time.sleep, tell)


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
    ):
        registry.delete_alias(uri, pipeline, registry.CHALLENGER)


def was_rolled_back(history: list[Entry], model: Model) -> bool:
    """Whether that version's last appearance as a challenger ended in a rollback: it does not come back by itself."""
    for before, after in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
        if before.challenger is not None and before.challenger.version == model.version:
            return after.action == "rollback"
    return False


@flow(name="rollout", flow_run_name="rollout {pipeline}")
async def rollout(pipeline: str = "flights", as_of: datetime | None = None) -> str:
    """Bring the challenger into service behind a canary; go on with one that was left behind.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The moment the challenger was trained as of, for the record, UTC; none = now.
    """
    context = open_context(pipeline)
    before = context.ledger.state(pipeline)
    started = await start_canary(pipeline, moment(as_of) if as_of else None)
    if started is None:
        get_run_logger().info("%s has neither champion nor challenger; run `perennial retrain %s`", pipeline, pipeline)
        return "nothing to roll out"
    ended = await judge_canary(pipeline) if started.challenger else started
    await settle(pipeline, ended)
    if before is not None and before.sequence == ended.sequence:
        return f"version {ended.champion.version if ended.champion else None} serves; there is no challenger"
    await publish(pipeline, context.ledger.history(pipeline))
    event = "perennial.rollout.rolled-back" if ended.action == "rollback" else "perennial.rollout.promoted"
    version = ended.champion.version if ended.champion else None
    announce(event, pipeline, {"version": version, "reason": ended.reason, "sequence": ended.sequence})
    return f"{ended.action}: version {version} serves. {ended.reason}"


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
