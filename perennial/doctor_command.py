"""`perennial doctor`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from perennial.doctor.findings import Check, Finding
    from perennial.settings import Settings
    from pipelines.spec import PipelineSpec

LIMIT_S = 5.0
TAKEN_BACK_S = 3.0
"""So much longer the end waits for a slow store, that what was written there to try does not stay."""


def doctor(
    pipeline: Annotated[
        str | None,
        typer.Argument(help="A pipeline, whose topics, tables, deployments and champion are looked for, too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Check every address, permission and version, and say what to mend. Status 1 if something fails; nothing is changed."""
    import json

    from rich.console import Console

    from perennial.doctor.findings import all_taken_back, run_checks
    from perennial.settings import settings
    from pipelines.spec import add_pipelines_dir, load_pipeline
    from validation.verdict import Status, worst

    current = settings()
    if current.pipelines_dir:
        add_pipelines_dir(current.pipelines_dir)
    spec = load_pipeline(pipeline) if pipeline else None
    found = run_checks(checks_of(current, spec), LIMIT_S)
    bad = [name for name, one in found.items() if one.verdict.status >= Status.ERROR]
    if as_json:
        told = {name: {**one.verdict.as_dict(), "mend": one.mend} for name, one in found.items()}
        status = worst(one.verdict for one in found.values()).status.name
        print(json.dumps({"status": status, "checks": told}, indent=2))
    else:
        console = Console()
        console.print(_table(found))
        open_ = sum(one.verdict.status is Status.INCONCLUSIVE for one in found.values())
        good = len(found) - len(bad) - open_
        console.print(f"{good} pass, {open_} inconclusive, {len(bad)} fail.", highlight=False)
    if any(one.verdict.status is Status.ERROR for one in found.values()):
        # A check that still waits for an answer, in a library that is not Python, would hold up the end.
        sys.stdout.flush()
        all_taken_back(TAKEN_BACK_S)
        os._exit(1)
    if bad:
        raise typer.Exit(1)


def checks_of(settings: Settings, spec: PipelineSpec | None) -> dict[str, Check]:
    """The checks that apply, by name. Imports what they need, which would not fit into their time."""
    from features import broker
    from perennial.doctor import aws, machine, servers, stores, stream

    broker.load()
    name = spec.name if spec else None
    checks: dict[str, Check] = {
        "python": machine.python,
        "packages": machine.packages,
        "home": lambda: machine.home(settings.root),
    }
    if spec and spec.model.family == "pytorch":
        import torch  # noqa: F401 - two seconds

        checks["gpu"] = machine.gpu
    if aws.needs_aws(settings):
        checks["aws"] = lambda: aws.identity(settings)
    checks["kafka"] = lambda: stream.kafka(settings)
    if spec:
        topics = [event.topic for event in spec.events]
        checks["topics"] = lambda: stream.topics(settings, topics)
    if settings.schema_registry_url:
        checks["schema registry"] = lambda: stream.schema_registry(settings.schema_registry_url)
    checks["ledger"] = lambda: stores.ledger(settings)
    checks["lake catalog"] = lambda: stores.lake_catalog(settings, name)
    checks["lake files"] = lambda: stores.lake_files(settings)
    checks["online store"] = lambda: stores.online_store(settings)
    checks["mlflow"] = lambda: servers.mlflow(settings)
    checks["artifacts"] = lambda: servers.artifacts(settings, name)
    if settings.checkpoints:
        checks["checkpoints"] = lambda: servers.checkpoints(settings)
    checks["prefect"] = lambda: servers.prefect(settings)
    checks["work pool"] = lambda: servers.work_pool(settings)
    if spec:
        checks["deployments"] = lambda: servers.deployments(settings, spec.name)
    checks["scoring"] = lambda: servers.scoring(settings, name)
    if settings.pushgateway_url:
        checks["pushgateway"] = lambda: servers.pushgateway(settings)
    checks["alerts"] = lambda: servers.alerts(settings)
    return checks


def _table(found: dict[str, Finding]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from validation.verdict import Status

    colors = {Status.PASS: "green", Status.INCONCLUSIVE: "yellow", Status.ERROR: "red", Status.FAIL: "red"}
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("what was seen, and the mend", overflow="fold")
    for name, one in found.items():
        status = one.verdict.status
        mend = f"\n-> {one.mend}" if one.mend else ""
        table.add_row(name, Text(status.name, style=colors[status]), Text(f"{one.verdict.reason}{mend}"))
    return table
