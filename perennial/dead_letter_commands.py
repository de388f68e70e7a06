"""`perennial dead-letters`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Records that could not be read as events.", no_args_is_help=True)
