"""`perennial contract`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.arguments import PipelineName, moment
from perennial.errors import StageError, UsageError
from perennial.wording import at, counted

if TYPE_CHECKING:
    from features.lake import Lake
    from pipelines.spec import Expectation, PipelineSpec

app = typer.Typer(help="What valid data means.", no_args_is_help=True)


@app.command()
def show(pipeline: PipelineName) -> None:
    """Say in words what valid feature rows are, and the contract's fingerprint, by which quarantined rows name it."""
    from flows.context import open_context
    from validation.contract import fingerprint

    spec = open_context(pipeline).spec
    print(f"{pipeline}: {spec.description} Contract {fingerprint(spec.contract)}.")
    described = {f.name: f.description for f in spec.features}
    for column in dict.fromkeys([e.column for e in spec.contract] + spec.feature_names):
        about = f" ({described[column]})" if described.get(column) else ""
        lines = [in_words(e) for e in spec.contract if e.column == column]
        print(f"{column}{about}: {'; '.join(lines) or 'anything'}")


@app.command()
def check(
    pipeline: PipelineName,
    since: Annotated[
        str | None, typer.Option(help="First event time, UTC; default as far before the end as drift looks back.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="First event time that is left out, UTC; default after the newest event.")
    ] = None,
) -> None:
    """Judge stored events by the contract as the code has it now; nothing is written. Ends with 0 only if they PASS.

    So a change of the contract, or of the features, can be tried before it is reviewed.
    """
    from features.store import historical
    from flows.context import open_context
    from serving.batch import feature_columns, scored_events
    from validation.contract import describe, validate

    context = open_context(pipeline)
    first, end = window_of(context.lake, context.spec, since, until)
    events = scored_events(context.lake, context.spec, first, end)
    rows = historical(context.spec, context.settings, events, {})
    judged = validate(rows, context.spec.contract, pipeline, feature_columns(context.spec))
    # Where a column is not as the pipeline says, the rows may be fine: scoring stops, and quarantines none.
    aside = 0 if judged.misfits else judged.quarantined.height
    print(f"{counted(rows.height, 'event')}, {at(first)} to {at(end)} UTC; {aside:,} would be quarantined")
    for one in judged.judgements:
        shown = ", ".join(f"{value!r} ({count:,})" for value, count in one.examples[:5])
        told = f"{one.failed_rows:,} of {one.checked_rows:,} rows fail" + (f": {shown}" if shown else "")
        print(f"{one.verdict.status.name:12} {describe(one.expectation)}: {told}")
    print(f"{judged.verdict.status.name}. {judged.verdict.reason}")
    if not judged.verdict.passed:
        raise StageError(f"the stored rows of {pipeline} do not pass the contract; mend it, the features or the source")


def in_words(expectation: Expectation) -> str:
    """A line of a contract without its column, such as `between 0 and 6000 in 99% of the rows`."""
    from validation.contract import describe

    words = describe(expectation).removeprefix(f"{expectation.column} ")
    return words if expectation.mostly == 1 else f"{words} in {expectation.mostly * 100:g}% of the rows"


def window_of(lake: Lake, spec: PipelineSpec, since: str | None, until: str | None) -> tuple[datetime, datetime]:
    """The event times that are meant: [first, end).

    Raises:
        UsageError: they are not in order, or there are no events to tell the end by.
    """
    table = spec.event(spec.scored.topic).table
    if until:
        end = moment(until)
    else:
        newest = lake.newest(table) if lake.exists(table) else None
        if newest is None:
            raise UsageError(f"{spec.name} has no event to judge yet; run `perennial ingest {spec.name}` first")
        end = newest + timedelta(microseconds=1)
    first = moment(since) if since else end - timedelta(seconds=spec.drift.watched_s)
    if first >= end:
        raise UsageError(
            f"--since {at(first)} is not before {at(end)} UTC, where the window ends; the rows between are judged"
        )
    return first, end
