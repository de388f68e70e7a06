"""`perennial features`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.arguments import PipelineName
from perennial.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from features.backfill import Backfill
    from features.lineage import FeatureLineage
    from features.materialize import Materialized
    from features.online_check import Difference, ViewCheck

app = typer.Typer(help="Features: where they come from, and whether online is offline.", no_args_is_help=True)


@app.command()
def describe(pipeline: PipelineName) -> None:
    """Which topic, field, key, function, window and code feed which feature, as applied; and what changed since."""
    from rich.console import Console

    from features.built import read_built
    from features.lineage import changes, declared
    from features.store import applied_lineage
    from flows.context import open_context

    context = open_context(pipeline)
    applied = applied_lineage(context.spec, context.settings)
    console = Console()
    for table in lineage_tables(applied):
        console.print(table)
    changed = changes(declared(context.spec), applied)
    if changed:
        console.print("[yellow]The code has changed since this was applied[/]; the next ingest applies it:")
        for sentence in changed:
            console.print(f"  {sentence}", markup=False, highlight=False)
    else:
        console.print(f"The code of {pipeline} is what is applied.")
    for view in context.spec.views:
        built = read_built(context.lake, context.spec, view)
        if told_so := built.warning or built.unknown:
            console.print(f"{told_so[0].upper()}{told_so[1:]}.", markup=False, highlight=False)


@app.command()
def check(pipeline: PipelineName) -> None:
    """Compare online with offline for every key. Exit status 0 if all are the same, 1 if not or if there are none.

    A key that differs is looked at again after five seconds: what an ingest is writing just now is no fault.
    """
    from rich.console import Console

    from features.built import warnings
    from features.check_log import record_check
    from features.online_check import check_online
    from flows.context import moment, open_context
    from validation.verdict import worst

    context, at = open_context(pipeline), moment(None)
    checks = check_online(context.spec, context.settings, context.lake)
    console = Console()
    console.print(check_table(checks))
    for found in checks:
        for example in found.examples:
            console.print(f"{found.view} {told(example)}", markup=False, highlight=False)
    verdict = worst(found.verdict for found in checks)
    for found in checks:
        if found.verdict.status is verdict.status:
            console.print(f"{verdict.status.name}: {found.verdict.reason}", markup=False, highlight=False)
    if any(found.mendable for found in checks):
        console.print(
            f"`perennial features materialize {pipeline}` writes the lake's newest rows online again.",
            markup=False,
            highlight=False,
        )
    # Online may be the same as offline, and both be of an older definition.
    for warning in warnings(context.lake, context.spec):
        console.print(f"{warning[0].upper()}{warning[1:]}.", markup=False, highlight=False)
    record_check(context.lake, checks, at)
    raise typer.Exit(0 if verdict.passed else 1)


@app.command()
def materialize(pipeline: PipelineName) -> None:
    """Write the lake's newest row of every key online: after the online store lost its data, or a part of it.

    A row that is newer online stays, so it can run beside an ingest, and again.
    """
    from features.materialize import materialize as write_newest
    from features.store import OnlineWriter
    from flows.context import open_context
    from perennial.errors import StateError

    context = open_context(pipeline)
    online, keys = OnlineWriter(context.spec, context.settings), 0
    for view in context.spec.views:
        done = write_newest(online, context.lake, view)
        print(told_of(done))
        keys += done.keys
    if not keys:
        raise StateError(f"the lake holds no features of {pipeline} yet; run `perennial ingest {pipeline}` first")


@app.command()
def backfill(
    pipeline: PipelineName,
    view: Annotated[str | None, typer.Option("--view", help="Only this view; default all of the pipeline's.")] = None,
) -> None:
    """Build every row of the views anew from the events in the lake, after their definition was changed; then online.

    The new rows take the place of the old ones in one commit a view. It can run beside an ingest, and again.
    """
    from features.backfill import backfill as build_anew
    from flows.context import open_context
    from perennial.errors import UsageError

    context = open_context(pipeline)
    views = [known for known in context.spec.views if view in (None, known.name)]
    if not context.spec.views:
        raise UsageError(
            f"{pipeline} has no views, so there is nothing to backfill; give it one in pipelines/{pipeline}/pipeline.py"
        )
    if not views:
        names = ", ".join(known.name for known in context.spec.views)
        raise UsageError(f"{pipeline} has no view {view!r}; it has {names}")
    for wanted in views:
        print(told_backfill(build_anew(context.settings, context.lake, context.spec, wanted)), flush=True)


def lineage_tables(lineage: Sequence[FeatureLineage]) -> Iterator[Table]:
    """A table a view: what its features have in common in the title, one feature a row."""
    from itertools import groupby

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    for view, features in groupby(lineage, key=lambda of: of.view):
        of_view = list(features)
        one = of_view[0]
        table = Table(
            title=f"[bold]{view}[/], by {one.entity}",
            caption=f"from {one.topic} by {one.key}, counts for {span(one.ttl_s)}, code {one.code}",
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            min_width=78,  # of the caption, which wraps where the table ends
        )
        table.add_column("feature", no_wrap=True)
        table.add_column("is the", overflow="fold")
        table.add_column("within", no_wrap=True)
        for of in of_view:
            table.add_row(of.feature, f"{of.function} of {of.field}", span(of.window_s))
        yield table


def check_table(checks: Sequence[ViewCheck]) -> Table:
    """A row a view: how many keys, and how many differ in each way that was found."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from features.online_check import KINDS

    kinds = [kind for kind in KINDS if any(kind in found.differences for found in checks)]
    table = Table(title="online against offline", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("view", overflow="fold")
    for column in ("keys", *kinds):
        table.add_column(column.replace(" ", "\n"), justify="right")
    table.add_column("verdict", no_wrap=True)
    colours = {"PASS": "green", "INCONCLUSIVE": "yellow"}
    for found in checks:
        status = found.verdict.status.name
        counts = [f"{found.differences[kind]:,}" if kind in found.differences else "-" for kind in kinds]
        table.add_row(found.view, f"{found.keys:,}", *counts, f"[{colours.get(status, 'red')}]{status}[/]")
    return table


def told(example: Difference) -> str:
    """One key that differs, as a sentence."""
    start = f"{example.key!r}: {example.kind}"
    if example.feature is not None:
        values = f"offline {_number(example.offline_value)}, online {_number(example.online_value)}"
        return f"{start}, {example.feature} at {_moment(example.offline_at)} is {values}"
    return f"{start}, offline {_moment(example.offline_at)}, online {_moment(example.online_at)}"


def told_of(done: Materialized) -> str:
    """What was brought online of one view, as a sentence."""
    if not done.keys:
        return f"{done.view}: nothing in the lake"
    newer = done.keys - done.written
    told = f"{done.view}: {counted(done.written, 'key')} written" + (
        f", {newer:,} newer online already" if newer else ""
    )
    return told + (f", {done.removed:,} that the lake no longer has removed" if done.removed else "")


def told_backfill(done: Backfill) -> str:
    """What a backfill did to a view, as a sentence."""
    rows = f"{counted(done.rows_before, 'row')} before, {counted(done.rows_after, 'row')} after"
    removed = f", {done.removed_keys:,} removed" if done.removed_keys else ""
    return f"{done.view}: {rows}; {counted(done.online_keys, 'key')} online{removed}; {done.seconds:.1f} s"


def span(seconds: str) -> str:
    """A length of time as a person says it: 86400 -> 24 h, 604800 -> 7 d."""
    if not seconds.isdigit():
        return seconds
    length = int(seconds)
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if length % unit == 0 and length >= (2 if name == "d" else 1) * unit:
            return f"{length // unit} {name}"
    return f"{length} s"


def _moment(at: Any) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}".removesuffix(".000000") if at is not None else "nothing"


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.17g}"
