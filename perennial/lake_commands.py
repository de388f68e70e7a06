"""`perennial lake`."""

from __future__ import annotations

import typer

app = typer.Typer(help="The event lake: its snapshots and files.", no_args_is_help=True)
