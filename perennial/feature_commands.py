"""`perennial features`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Features: where they come from, and whether online is offline.", no_args_is_help=True)
