"""The command line. Heavy libraries are imported by the command that needs them, so that --help answers at once."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from perennial import (
    alert_commands,
    contract_commands,
    dead_letter_commands,
    feature_commands,
    infra_commands,
    lake_commands,
)
from perennial.arguments import AsOf, PipelineName, moment
from perennial.cost_command import cost
from perennial.doctor_command import doctor
from perennial.drift_commands import drift
from perennial.errors import PerennialError, UnreachableError, UsageError
from perennial.web_addresses import without_user
from perennial.wording import counted

if TYPE_CHECKING:
    from collections.abc import Coroutine

app = typer.Typer(
    name="perennial",
    help="Keeps machine-learning models fresh: stream, validate, watch for drift, retrain, gate, canary, roll back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(feature_commands.app, name="features")
app.add_typer(lake_commands.app, name="lake")
app.add_typer(dead_letter_commands.app, name="dead-letters")
app.add_typer(contract_commands.app, name="contract")
app.add_typer(alert_commands.app, name="alerts")
app.add_typer(infra_commands.app, name="infra")

app.command()(drift)
app.command()(cost)
app.command()(doctor)

T = TypeVar("T")


class FamilyName(StrEnum):
    """Model families, for the command line."""

    lightgbm = "lightgbm"
    pytorch = "pytorch"


@app.command()
def demo(
    through: Annotated[str, typer.Option(help="Last simulated day of 2013.")] = "2013-04-30",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end, to look around.")] = False,
) -> None:
    """Watch a model being kept fresh, from the first event to a bad release that is rolled back."""
    from perennial.demo import run_demo

    raise typer.Exit(run_demo(moment(through), json_file, keep))


@app.command()
def up(
    kafka_port: Annotated[int, typer.Option(help="Port of the Kafka broker.")] = 9092,
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server.")] = 5000,
    scoring_port: Annotated[int, typer.Option(help="Port of the scoring service.")] = 8000,
) -> None:
    """Start the local stack and stay: Kafka, Prefect with a worker, MLflow, scoring. Ctrl-C stops it all."""
    from rich.console import Console

    from perennial.ports import StackPorts
    from perennial.settings import settings
    from perennial.stack import start_stack
    from perennial.tables import services_table

    console = Console()
    ports = StackPorts(kafka=kafka_port, prefect=prefect_port, mlflow=mlflow_port, scoring=scoring_port)

    def tell(name: str, seconds: float) -> None:
        console.print(f"{name} is ready after {seconds:.1f} s")

    with start_stack(settings(), ports, on_ready=tell) as stack:
        console.print(services_table(stack.services))
        console.print("Ctrl-C stops everything.")
        stack.wait()


@app.command()
def replay(
    pipeline: PipelineName,
    from_: Annotated[str, typer.Option("--from", help="First day (UTC).")],
    to: Annotated[str, typer.Option("--to", help="First day that is left out (UTC).")],
    speed: Annotated[
        float | None, typer.Option(help="Times real time; default as fast as the broker takes it.")
    ] = None,
) -> None:
    """Produce a pipeline's historical events to Kafka, in the order in which they happened."""
    from features.replay import replay as produce
    from flows.context import open_context

    start, end = moment(from_), moment(to)
    if start >= end:
        raise UsageError(f"--from {from_} is not before --to {to}; the days in between are replayed")
    if speed is not None and not speed > 0:  # nan is not either
        raise UsageError(f"--speed {speed} is not above 0; 1 is real time, 3600 an hour in a second")
    context = open_context(pipeline)
    counts = produce(
        context.settings,
        context.spec,
        start,
        end,
        speed,
        on_slice=lambda at, n: print(f"{at:%Y-%m-%d %H:%M}  {counted(n, 'event')}"),
    )
    if not sum(counts.values()):
        raise UsageError(f"{pipeline} has no events between {from_} and {to}")
    print("\n".join(f"{topic}: {count:,}" for topic, count in counts.items()))


@app.command()
def ingest(
    pipeline: PipelineName,
    as_of: AsOf = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C; features are online at once.")] = False,
    every_s: Annotated[
        float | None, typer.Option(help="With --follow: seconds between two commits to the lake; default 10.", min=0.1)
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(help="With --follow: records after which a commit comes earlier; default 100,000.", min=1),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="With --follow: port where Prometheus is answered.", min=0, max=65_535),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="With --metrics-port: address to listen on, such as 0.0.0.0 in a container.")
    ] = "127.0.0.1",
) -> None:
    """Take in what Kafka holds: event lake, features, online store."""
    now = moment(as_of) if as_of else None
    if metrics_port is not None and not follow:
        raise UsageError(
            f"--metrics-port {metrics_port} is of --follow; a run with an end writes its metrics to PERENNIAL_HOME/metrics"
        )
    for option, value in (("--every-s", every_s), ("--max-rows", max_rows)):
        if value is not None and not follow:
            raise UsageError(f"{option} {value} is of --follow; leave it out, or add --follow")
    if follow:
        if now:
            raise UsageError(f"--as-of {as_of} is of a run with an end; leave it out, or leave out --follow")
        from perennial.following import follow_pipeline

        follow_pipeline(pipeline, every_s or 10.0, max_rows or 100_000, metrics_port, metrics_host)
        return
    connect(pipeline)
    from flows.ingest import ingest as flow
    from perennial.following import told_topic

    summary = run(flow(pipeline, now))
    for topic in summary.topics:
        print(told_topic(topic))
    for view in summary.views:
        print(f"{view.view}: {counted(view.rows, 'feature row')}, {counted(view.online_keys, 'key')} online")
    for warning in summary.warnings:
        print(f"perennial: {warning}", file=sys.stderr)


@app.command()
def score(pipeline: PipelineName, as_of: AsOf = None) -> None:
    """Score what came in since the last run, as far back as a label may still come; older events stay unscored."""
    now = moment(as_of) if as_of else None
    connect(pipeline)
    from flows.score import score as flow

    summary = run(flow(pipeline, now))
    if summary.version is None:
        raise UsageError(
            f"nothing was scored: {pipeline} has no champion yet; run `perennial retrain {pipeline}` first"
        )
    print(f"{counted(summary.scored_rows, 'prediction')} by version {summary.version}")
    if summary.quarantined_rows:
        print(
            f"{counted(summary.quarantined_rows, 'row')} did not meet the contract and went to quarantine; "
            f"`perennial contract quarantine {pipeline}` lists them"
        )


@app.command()
def monitor(pipeline: PipelineName, as_of: AsOf = None) -> None:
    """Validate, look for drift, measure performance, and ask for a retrain when it pays."""
    now = moment(as_of) if as_of else None
    connect(pipeline)
    from flows.monitor import monitor as flow

    summary = run(flow(pipeline, now))
    for check, verdict in summary.verdicts.items():
        print(f"{check}: {verdict.status.name}. {verdict.reason}")
    print(", ".join(f"{name}: {count}" for name, count in summary.labels.items()))
    print(summary.decision.reason)
    if summary.report:
        print(f"report: {summary.report}")
    print(f"alerts: {summary.told}")


@app.command()
def retrain(
    pipeline: PipelineName,
    as_of: AsOf = None,
    family: Annotated[FamilyName | None, typer.Option(help="Model family; default the pipeline's own.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by hand",
) -> None:
    """Fit a candidate and hold it against the champion."""
    now = moment(as_of) if as_of else None
    connect(pipeline)
    from flows.retrain import retrain as flow

    summary = run(flow(pipeline, now, family.value if family else None, reason))
    print(f"version {summary.version}: {summary.decision}. {summary.reason}")
    if summary.decision == "accepted":
        print(f"It is the challenger now. The running stack rolls it out; without one: `perennial rollout {pipeline}`.")


@app.command()
def rollout(pipeline: PipelineName, as_of: AsOf = None) -> None:
    """Bring the challenger into service behind a canary."""
    now = moment(as_of) if as_of else None
    connect(pipeline)
    from flows.rollout import rollout as flow

    print(run(flow(pipeline, now)))


@app.command()
def release(
    pipeline: PipelineName, version: Annotated[str, typer.Option(help="A registered version, such as 7.")]
) -> None:
    """Roll a registered version out behind the canary, whatever its gate said and even if it was rolled back before."""
    connect(pipeline)
    from flows.context import open_context
    from flows.rollout import rollout as flow
    from training import registry

    context = open_context(pipeline)
    if registry.get(context.settings.mlflow_tracking_uri, pipeline, version) is None:
        raise UsageError(f"{pipeline} has no version {version!r} in MLflow; `perennial retrain {pipeline}` makes one")
    print(run(flow(pipeline, version=version)))


@app.command()
def rollback(pipeline: PipelineName, reason: Annotated[str, typer.Option(help="Why, for the record.")]) -> None:
    """Take the canary out of service, or return from the champion to the one before it; withdraw a waiting challenger."""
    from flows.context import moment as now
    from flows.context import open_context
    from rollout.controller import rollback as back
    from training import registry

    context = open_context(pipeline)
    uri = context.settings.mlflow_tracking_uri
    refused: UsageError | None = None
    # The ledger first: it decides who serves, and a rollback must not wait for MLflow.
    try:
        entry = back(context.ledger, pipeline, reason, now(None))
        serves = entry.champion.version if entry.champion else None
        print(f"version {serves} serves {pipeline}")
    except UsageError as error:
        refused, serves = error, None
    try:
        if serves:
            registry.set_alias(uri, pipeline, registry.CHAMPION, serves)
        waiting = registry.get(uri, pipeline, registry.CHALLENGER)
        if waiting is not None:
            registry.delete_alias(uri, pipeline, registry.CHALLENGER)
            refused = None
            print(f"version {waiting.version}, the challenger, is withdrawn; `perennial release` would bring it back")
    except UnreachableError as error:
        if refused is None:
            print(f"perennial: {error}. Its aliases follow with the next rollout", file=sys.stderr)
    if refused is not None:
        raise refused


@app.command()
def traffic(
    pipeline: PipelineName,
    day: Annotated[
        str, typer.Option(help="The day of the pipeline's history whose requests are sent, again and again.")
    ],
    per_second: Annotated[float, typer.Option(help="Requests a second.", min=0.1, max=10_000)] = 40.0,
) -> None:
    """Send live requests to the scoring service until Ctrl-C; a canary is judged on them."""
    import signal

    from flows.context import open_context
    from perennial.settings import settings
    from perennial.traffic import Traffic, day_requests, told

    bodies = day_requests(open_context(pipeline).spec, moment(day))
    if not bodies:
        raise UsageError(f"--day {day}: the history of {pipeline} has no event to score on that day; choose another")
    sender = Traffic(settings().scoring_url)
    sender.wanted.put((bodies, per_second))
    print(f"{per_second:g} requests a second to {without_user(settings().scoring_url)}. Ctrl-C stops them.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sender.stopped.set())
    sender.send(f"/v1/{pipeline}/score")
    print(told(sender.report()))


@app.command()
def init(name: Annotated[str, typer.Argument(help="Name of the new pipeline, lower case, such as payments.")]) -> None:
    """Write a new, working pipeline folder to start from."""
    from perennial.deploy import add_deployments
    from perennial.scaffold import check_new, init_pipeline
    from perennial.settings import settings

    project = Path(__file__).parent.parent
    directory = settings().pipelines_dir or project / "pipelines"
    check_new(name, directory)
    # First, because it can be repeated: cut off in between, `init` is run again and finds nothing in its way.
    add_deployments(project / "prefect.yaml", name)
    print(f"{init_pipeline(name, directory)} is ready, with its deployments in prefect.yaml; `make test` checks it")


def run(flow: Coroutine[Any, Any, T]) -> T:
    """Run a flow to its end."""
    import asyncio

    return asyncio.run(flow)


def connect(pipeline: str) -> None:
    """Make sure the pipeline is there; then point Prefect at its server, before it is imported."""
    from flows.context import open_context
    from perennial.connect import connect_prefect
    from perennial.settings import settings

    open_context(pipeline)
    connect_prefect(settings())


def main() -> None:
    """Entry point: expected failures become one sentence and an exit status, never a traceback."""
    try:
        app()
    except PerennialError as error:
        print(f"perennial: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        from perennial.errors import told

        print(f"perennial: {told(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
