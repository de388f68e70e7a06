"""`perennial dead-letters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.arguments import PipelineName
from perennial.wording import at, counted

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

app = typer.Typer(help="Records that could not be read as events.", no_args_is_help=True)

TopicName = Annotated[str | None, typer.Option("--topic", help="Only this topic's; default all of the pipeline's.")]
MOST_KINDS = 20
VALUE_BYTES = 400


@app.command(name="list")
def list_(
    pipeline: PipelineName,
    topic: TopicName = None,
    limit: Annotated[int, typer.Option(help="How many of the newest are shown.", min=0)] = 20,
) -> None:
    """Show the dead letters that were not replayed, newest first: where each was, why it was refused, how it begins.

    Where there are more than are shown, how many of each kind there are comes first.
    """
    from rich.console import Console

    from features.dead_letters import find_letters, read_whole
    from flows.context import open_context

    context = open_context(pipeline)
    letters = find_letters(context.lake, context.spec, topic)
    of = f"{pipeline}, {topic}" if topic else pipeline
    print(f"{of}: {counted(letters.open.height, 'open dead letter')}, {letters.replayed:,} replayed.")
    if letters.open.height > limit:
        Console().print(kinds_table(letters.open))
    shown = letters.open.head(limit)
    if not shown.height:
        return
    if letters.open.height > limit:
        print(f"The newest {shown.height:,}:")
    width = Console().width
    for letter in read_whole(context.lake, shown).iter_rows(named=True):
        place = f"{letter['topic']} {letter['kafka_partition']}@{letter['kafka_offset']}"
        print(f"{place}, taken in {at(letter['created_timestamp'])}")
        print(f"  {printable(letter['reason'])}")
        print(f"  {beginning(letter['value'], width - 2)}")


@app.command()
def replay(pipeline: PipelineName, topic: TopicName = None) -> None:
    """Send the open dead letters that are valid events by now to their topic again; the next ingest takes them in.

    An event that is older by now than the lateness its topic allows is kept, but corrects no feature.
    """
    import polars as pl
    from rich.console import Console

    from features.dead_letters import replay_letters
    from flows.context import moment, open_context

    context = open_context(pipeline)
    sent, stay = 0, []
    for step in replay_letters(context.settings, context.lake, context.spec, topic, moment(None)):
        sent += step.sent.height
        stay.append(step.stay)
        print(f"{sent:,} sent again, {sum(some.height for some in stay):,} not valid", flush=True)
    if not stay:
        print(f"{topic or pipeline} has no open dead letter.")
        return
    left = pl.concat(stay)
    if left.height:
        Console().print(kinds_table(left, title="not valid today either"))
    if sent:
        print(f"`perennial ingest {pipeline}` takes in what was sent again.")


def kinds_table(letters: pl.DataFrame, title: str | None = None) -> Table:
    """How many letters by topic and kind of reason, the most frequent first.

    Args:
        letters: `topic` and `reason`.
        title: of the table.
    """
    import polars as pl
    from rich.markup import escape
    from rich.table import Table

    from features.dead_letters import reason_kind

    kinds = letters.group_by("topic", reason_kind()).agg(letters=pl.len())
    kinds = kinds.sort("letters", "topic", "kind", descending=[True, False, False])
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("topic", overflow="fold")
    table.add_column("reason (# a number, … a value)", overflow="fold")
    table.add_column("letters", justify="right", no_wrap=True)
    for topic, kind, count in kinds.head(MOST_KINDS).iter_rows():
        table.add_row(topic, escape(printable(kind)), f"{count:,}")
    if kinds.height > MOST_KINDS:
        rest = kinds.slice(MOST_KINDS)
        table.caption = f"and {counted(rest.height, 'more kind')}, {counted(int(rest['letters'].sum()), 'letter')}"
    return table


def beginning(value: bytes | None, width: int) -> str:
    """How a value begins, as Python writes bytes, so that nothing in it reaches the terminal; at most `width` wide."""
    if value is None:
        return "no value (a tombstone)"
    text, size = repr(value[:VALUE_BYTES]), f" ({len(value):,} bytes)"
    if len(text) <= width and len(value) <= VALUE_BYTES:
        return text
    return f"{text[: max(0, width - len(size) - 3)]}...{size}"


def printable(text: str) -> str:
    """The text on one line, with everything that a terminal would not print written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
