"""Online against offline, for every key."""

from __future__ import annotations

from datetime import datetime

from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact

from features.check_log import record_check
from features.online_check import KINDS, ViewCheck, check_online
from flows.context import moment, open_context
from flows.stage import stage
from perennial.errors import StageError
from validation.verdict import Status, Verdict, worst


@stage(again_after_conflict=1)
def compare_online(pipeline: str, as_of: datetime) -> tuple[ViewCheck, ...]:
    """Compare every view, and keep what was found: from then on it is the metric."""
    context = open_context(pipeline)
    checks = check_online(context.spec, context.settings, context.lake)
    record_check(context.lake, checks, as_of)
    return checks


@flow(name="check", flow_run_name="check {pipeline}")
async def check(pipeline: str = "flights") -> Verdict:
    """Hold the online features of every key against the newest offline ones. The run fails if one is not the same.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
    """
    now = moment(None)
    checks = await compare_online(pipeline, now)
    verdict = worst(found.verdict for found in checks)
    await acreate_markdown_artifact(
        describe(pipeline, checks, now),
        key=f"check-{pipeline.replace('_', '-')}",
        description=f"Whether the online features of {pipeline} are the offline ones",
    )
    if verdict.status in (Status.ERROR, Status.FAIL):
        raise StageError(f"{verdict.reason}; `perennial features check {pipeline}` shows which")
    get_run_logger().info("%s: %s", verdict.status.name, verdict.reason)
    return verdict


def describe(pipeline: str, checks: tuple[ViewCheck, ...], now: datetime) -> str:
    """What a check found, for a person, as Markdown."""
    lines = [f"# {pipeline}, online against offline at {now:%Y-%m-%d %H:%M} UTC", ""]
    lines += [f"- **{check.view}: {check.verdict.status.name}**. {check.verdict.reason}" for check in checks]
    lines += ["", f"| view | keys | {' | '.join(KINDS)} |", f"| --- | --: |{' --: |' * len(KINDS)}"]
    for check in checks:
        counts = " | ".join(f"{check.differences.get(kind, 0):,}" for kind in KINDS)
        lines.append(f"| {check.view} | {check.keys:,} | {counts} |")
    return "\n".join(lines)
