"""`perennial infra`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perennial.errors import UsageError

app = typer.Typer(help="What infra/terraform made in AWS.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `outputs` a command of its own while it is the only one."""


@app.command()
def outputs(
    file: Annotated[
        Path | None,
        typer.Argument(help="What `terraform output -json` wrote, - for a pipe; default asks Terraform itself."),
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Lines for infra/kubernetes' addresses.env.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Print the settings that point perennial at AWS: eval "$(perennial infra outputs)". No password is among them."""
    import json

    from perennial import infra_outputs, terraform

    if env and as_json:
        raise UsageError("--env and --json are two ways to write; leave one out")
    source = "standard input" if str(file) == "-" else str(file or terraform.FOLDER)
    text = terraform.read_text(file) if file else terraform.output_json()
    told = infra_outputs.read_outputs(text, source)
    if env:
        print(infra_outputs.for_an_env_file(infra_outputs.cluster_addresses(told)), end="")
    elif as_json:
        print(json.dumps(infra_outputs.settings_of(told), indent=2))
    else:
        print(infra_outputs.for_a_shell(infra_outputs.settings_of(told)), end="")
