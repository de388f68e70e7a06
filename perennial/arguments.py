"""What several commands take, and how it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from perennial.errors import UsageError

PipelineName = Annotated[str, typer.Argument(help="Name of the pipeline: a folder below pipelines/.")]
AsOf = Annotated[
    str | None, typer.Option(help="The run's clock in UTC, such as 2013-03-01 or 2013-03-01T12:00; default now.")
]


def moment(text: str) -> datetime:
    """A date or date and time in UTC, from text.

    Raises:
        UsageError: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a date; write it as 2013-03-01 or 2013-03-01T12:00 (UTC)") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
