"""`perennial lake`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.arguments import PipelineName
from perennial.wording import at, counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from features.lake import Lake

app = typer.Typer(help="The event lake: its snapshots and files.", no_args_is_help=True)

# Longer than any commit: until it commits, a writer's files look like files that nobody needs.
LEAST_HOURS = 1.0

TableName = Annotated[str | None, typer.Option("--table", help="Only this table; default all of the pipeline's.")]


@app.command()
def history(pipeline: PipelineName, table: TableName = None) -> None:
    """Show each table's snapshots, newest first: when, what was added, up to which Kafka positions, and their names."""
    from features.maintenance import history as snapshots
    from features.maintenance import tables_of

    lake = _lake(pipeline)
    for name in tables_of(lake, _own(pipeline, table)):
        print(f"{pipeline}.{name}")
        for line in snapshots(lake, name):
            added = f"+{line.added_rows:,}" if line.operation == "append" else ""
            print(
                f"  {at(line.committed)}  {line.operation:<8} {added:>10} {line.total_rows:>11,} rows "
                f"{line.files:>5,} files {_size(line.size_bytes):>8}"
            )
            more = [f"snapshot {line.snapshot_id}"]
            more += [f"up to {_positions(line.offsets)}"] if line.offsets else []
            more += [f"named {', '.join(line.names)}"] if line.names else []
            print(f"    {'; '.join(more)}")


@app.command()
def compact(pipeline: PipelineName, table: TableName = None) -> None:
    """Write each day's many small files into few large ones. Rows, Kafka positions and named snapshots stay as they are."""
    from features.compaction import compact as rewrite
    from features.maintenance import tables_of

    lake = _lake(pipeline)
    for name in tables_of(lake, _own(pipeline, table)):
        done = rewrite(lake, name)
        files = counted(done.files_before, "file")
        told = f"{files} -> {done.files_after:,}, {counted(done.rewritten_rows, 'row')} written again"
        print(f"{name}: {told if done.commits else f'{files}, nothing to do'}")


@app.command()
def expire(
    pipeline: PipelineName,
    table: TableName = None,
    keep: Annotated[
        int, typer.Option(help="How many of the newest snapshots stay; named ones stay anyway.", min=1)
    ] = 4,
    older_than: Annotated[
        float,
        typer.Option(
            help="Hours, 1 at least: younger files are left, because a writer at work may not have committed them yet.",
            min=LEAST_HOURS,
        ),
    ] = 24.0,
) -> None:
    """Let go of old snapshots without a name, and delete the files that no snapshot needs, of failed commits included."""
    from features.maintenance import expire as let_go
    from features.maintenance import tables_of
    from flows.context import moment

    lake = _lake(pipeline)
    for name in tables_of(lake, _own(pipeline, table)):
        done = let_go(lake, name, keep, timedelta(hours=older_than), moment(None))
        print(
            f"{name}: {counted(done.snapshots_gone, 'snapshot')} let go, {done.snapshots_kept:,} kept; "
            f"{counted(done.files_deleted, 'file')} older than {older_than:g} h deleted ({_size(done.deleted_bytes)})"
        )


def _own(pipeline: str, table: str | None) -> str | None:
    """A table's name within its pipeline, which may be given with it."""
    return table.removeprefix(f"{pipeline}.") if table else None


def _lake(pipeline: str) -> Lake:
    from flows.context import open_context

    return open_context(pipeline).lake


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} GB"


def _positions(offsets: Mapping[int, int]) -> str:
    return ", ".join(f"{partition}: {offset:,}" for partition, offset in sorted(offsets.items()))
