"""Findings -> what is due -> messages, and the record of who got them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect import get_run_logger
from pydantic import SecretStr

from flows.context import moment, open_context
from flows.stage import stage
from perennial.errors import UsageError
from perennial.settings import Settings
from perennial.wording import counted
from validation.alert_log import NOBODY, Sent, record_sent, told_to
from validation.alert_text import title
from validation.alerts import Alert, Finding, due, open_checks
from validation.notify import Delivery, open_targets, send, split_urls
from validation.verdict import Verdict

BLOCK = "perennial-alert-urls"
HOW = f"set PERENNIAL_ALERT_URLS, or make a Prefect Secret block `{BLOCK}`; `perennial alerts test` tries them"


@dataclass(frozen=True)
class AlertSummary:
    """What people were told in one run.

    Attributes:
        deliveries: each message to each target.
        unheard: messages that were due while no target was configured.
        mistakes: a sentence for each URL that cannot be used.
    """

    deliveries: tuple[Delivery, ...]
    unheard: tuple[Alert, ...]
    mistakes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps people from being told, a sentence each with the mend."""
        warnings = [f"{mistake}; the other targets are not kept from their alerts" for mistake in self.mistakes]
        if self.unheard:
            warnings.append(f"{counted(len(self.unheard), 'alert')} went nowhere: no target is configured; {HOW}")
        warnings += [
            f"{d.target} did not get {title(d.alert)!r}: {d.refusal}; the next run tries again"
            for d in self.deliveries
            if d.refusal
        ]
        return tuple(warnings)

    @property
    def told(self) -> str:
        """What was sent, in a sentence."""
        taken = [d for d in self.deliveries if d.refusal is None]
        if not taken:
            return "nothing was sent"
        return "; ".join(f"{title(d.alert)!r} went to {d.target}" for d in taken)


async def alert_targets(settings: Settings) -> tuple[SecretStr, ...]:
    """URLs of the alert targets: from the environment, else from the Prefect Secret block; none if there is neither.

    Raises:
        UsageError: the block holds something else than URLs.
    """
    from prefect.blocks.system import Secret
    from prefect.exceptions import ObjectNotFound

    given = settings.alert_urls.get_secret_value()
    if given.strip():
        return split_urls(given)
    try:
        block: Secret[Any] = await Secret.aload(BLOCK)
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return ()
        raise
    held = block.get()
    if isinstance(held, list) and all(isinstance(url, str) for url in held):
        return tuple(SecretStr(url) for url in held)
    if isinstance(held, str):
        return split_urls(held)
    raise UsageError(f"the Prefect Secret block {BLOCK} is neither text nor a list of texts; put URLs into it")


@stage()
def lasting(pipeline: str) -> frozenset[str]:
    """Checks of which somebody was told that something is wrong, and not yet that it is over."""
    known = told_to(open_context(pipeline).lake)
    return frozenset().union(*(open_checks(told) for told in known.values()))


@stage()
def send_alerts(
    pipeline: str,
    urls: Sequence[SecretStr],
    findings: Sequence[Finding],
    verdicts: Mapping[str, Verdict],
    decision: str,
    as_of: datetime,
) -> AlertSummary:
    """Tell every target what is due to it, and keep what it took.

    Each target has its own history: one that was away is told later, and the others are not told twice. Sent first, kept
    then: a run that is killed in between may tell twice, but leaves nothing out.

    Args:
        pipeline: whose checks they are.
        urls: of the targets, as `alert_targets` has them; none = what is due is kept and goes nowhere.
        findings: what is wrong, as `findings_of` has them.
        verdicts: of every check; one that PASSes ends what was told of it.
        decision: what was decided about a retrain, as a sentence.
        as_of: the run's clock (UTC).
    """
    context = open_context(pipeline)
    known = told_to(context.lake)

    def due_to(target: str) -> tuple[Alert, ...]:
        return due(pipeline, findings, verdicts, known.get(target, ()), context.spec.alerts, decision, as_of)

    targets, mistakes = open_targets(urls)
    wanted = {target: alerts for target in targets if (alerts := due_to(target.name))}
    deliveries = send(wanted)
    unheard = () if urls else due_to(NOBODY)
    taken = [Sent(d.target, d.alert) for d in deliveries if d.refusal is None]
    record_sent(context.lake, [*taken, *(Sent(NOBODY, alert) for alert in unheard)], moment(None))
    summary = AlertSummary(deliveries, unheard, tuple(str(mistake) for mistake in mistakes))
    for warning in summary.warnings:
        get_run_logger().warning(warning)
    if taken:
        get_run_logger().info(summary.told)
    return summary
