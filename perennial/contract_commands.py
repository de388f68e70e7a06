"""`perennial contract`."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.arguments import AsOf, PipelineName, moment
from perennial.dead_letter_commands import printable
from perennial.errors import StageError, UsageError
from perennial.wording import at, counted

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from features.lake import Lake
    from pipelines.spec import Expectation, PipelineSpec

app = typer.Typer(help="What valid data means, and the rows that are not.", no_args_is_help=True)

MOST_CHECKED = 5
LONGEST_VALUE = 60


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
    if aside:
        from rich.console import Console

        some = judged.quarantined.head(MOST_CHECKED)
        print(f"The first {some.height:,} of them:" if some.height < aside else "They are:")
        Console().print(rows_table(some))
    print(f"{judged.verdict.status.name}. {judged.verdict.reason}")
    if not judged.verdict.passed:
        raise StageError(
            f"the stored rows of {pipeline} do not pass the contract; mend it, the features or the source. "
            f"`perennial contract quarantine {pipeline}` lists the rows that scoring has put aside"
        )


@app.command()
def quarantine(
    pipeline: PipelineName,
    as_of: AsOf = None,
    last: Annotated[int, typer.Option(help="How many of the newest are shown.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List the rows that did not meet the contract and have no prediction: what each failed, and the value that did.

    A changed contract tries them again by itself, as long as their label may still come.
    """
    from rich.console import Console

    from flows.context import moment as clock
    from flows.context import open_context
    from validation.quarantine import still_aside

    found = still_aside(open_context(pipeline).lake, moment(as_of) if as_of else clock(None))
    shown = found.head(last)
    if as_json:
        told = {"pipeline": pipeline, "rows_in_quarantine": found.height, "rows": rows_told(shown)}
        print(json.dumps(told, indent=1))
        return
    if not found.height:
        print(f"{pipeline} has no row in quarantine.")
        return
    newest = f", the newest {shown.height:,}" if shown.height < found.height else ""
    print(f"{pipeline}: {counted(found.height, 'row')} in quarantine{newest}:")
    Console().print(rows_table(shown))
    print(f"Mend their source or, if they are right, the contract; `perennial contract check {pipeline}` tries that.")


def rows_told(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows that failed their contract, for programs: when, whose, and each expectation with the value that failed it."""
    from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP
    from features.store import ENTITY_KEY
    from validation.contract import FAILED
    from validation.quarantine import CONTRACT, failures

    return [
        {
            "event_timestamp": row[EVENT_TIMESTAMP].isoformat(),
            "entity_key": row[ENTITY_KEY],
            "failed": [
                {"expectation": what, "column": column, "value": in_json(row.get(column))}
                for what, column in failures(row[FAILED], row)
            ],
            "contract": row.get(CONTRACT),
            "quarantined_at": row[CREATED_TIMESTAMP].isoformat() if row.get(CREATED_TIMESTAMP) else None,
        }
        for row in rows.iter_rows(named=True)
    ]


def rows_table(rows: pl.DataFrame) -> Table:
    """Rows that failed their contract in a terminal of 80 characters, a line for each expectation that one failed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from features.lake import EVENT_TIMESTAMP
    from features.store import ENTITY_KEY
    from validation.contract import FAILED
    from validation.quarantine import failures

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("event (UTC)", no_wrap=True)
    for name in ("key", "failed", "value"):
        table.add_column(name, overflow="fold")
    for row in rows.iter_rows(named=True):
        whose = (at(row[EVENT_TIMESTAMP]), value_told(row[ENTITY_KEY]))
        for number, (what, column) in enumerate(failures(row[FAILED], row)):
            cells = (*(whose if not number else ("", "")), printable(what), value_told(row.get(column)))
            table.add_row(*(Text(cell) for cell in cells))
    return table


def value_told(value: object) -> str:
    """A value in a few characters, whatever it holds."""
    told = "no value" if value is None else printable(str(value)) or "(empty)"
    return told if len(told) <= LONGEST_VALUE else f"{told[: LONGEST_VALUE - 1]}…"


def in_json(value: Any) -> Any:
    """A value as JSON can have it, which knows no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


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
