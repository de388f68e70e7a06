"""`perennial alerts`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from perennial.arguments import PipelineName
from perennial.errors import StageError, UsageError
from perennial.wording import at, counted

app = typer.Typer(help="Alerts: try their targets, and see what was sent.", no_args_is_help=True)


@app.command(name="test")
def try_(
    pipeline: Annotated[str, typer.Argument(help="The pipeline's name in the message.")] = "perennial",
) -> None:
    """Send a test message to every target, and say which took it. Status 0 only if all did; nothing is kept."""
    import asyncio

    from perennial.connect import connect_prefect
    from perennial.settings import settings

    if not settings().alert_urls.get_secret_value().strip():
        connect_prefect(settings())  # the block is looked for there
    from flows.alert import HOW, alert_targets
    from flows.context import moment
    from validation.alerts import Alert, Finding, Severity
    from validation.notify import open_targets, send

    urls = asyncio.run(alert_targets(settings()))
    if not urls:
        raise UsageError(f"there is no alert target; {HOW}")
    alert = Alert(pipeline, "alert", Finding("test", Severity.INFO, "This is a test."), "", moment(None))
    targets, mistakes = open_targets(urls)
    deliveries = send(dict.fromkeys(targets, (alert,)))
    for delivery in deliveries:
        print(f"{delivery.target}: {f'refused, {delivery.refusal}' if delivery.refusal else 'took it'}")
    for mistake in mistakes:
        print(f"perennial: {mistake}", file=sys.stderr)
    failed = len(mistakes) + sum(delivery.refusal is not None for delivery in deliveries)
    if failed:
        raise StageError(
            f"{failed} of {counted(len(urls), 'alert target')} did not take the test; mend them, try again"
        )


@app.command(name="list")
def list_(
    pipeline: PipelineName,
    limit: Annotated[int, typer.Option(help="How many of the newest are shown.", min=1)] = 20,
) -> None:
    """Show what was sent and to whom, newest first."""
    from flows.context import open_context
    from validation.alert_log import NOBODY, read_sent
    from validation.alert_text import harmless

    sent = read_sent(open_context(pipeline).lake)
    print(f"{pipeline}: {counted(sent.height, 'message')} sent{':' if sent.height else '.'}")
    for row in sent.head(limit).iter_rows(named=True):
        to = "nobody, there was no target" if row["target"] == NOBODY else row["target"]
        print(f"{at(row['event_timestamp'])}  {row['kind']}, {row['severity']} {row['check']}, to {to}")
        print(f"  {harmless(row['headline'])}")
