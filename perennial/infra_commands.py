"""`perennial infra`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from perennial.errors import UsageError

app = typer.Typer(help="What Terraform made in AWS.", no_args_is_help=True)


@app.command()
def outputs(
    file: Annotated[
        str | None,
        typer.Argument(help="What `terraform output -json` printed, - for standard input; default: ask Terraform."),
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Lines NAME=VALUE, as addresses.env of infra/kubernetes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Turn Terraform's outputs into the settings that point the pipeline at AWS. None of them is secret.

    By default as lines for a shell: eval "$(perennial infra outputs)".
    """
    from perennial.terraform_outputs import FOLDER, read_outputs, settings_of

    if env and as_json:
        raise UsageError("--env and --json are two forms of the same; give one of them")
    if file is None:
        told, source = read_outputs(FOLDER), f"the state of {FOLDER}"
    elif file == "-":
        told, source = sys.stdin.read(), "standard input"
    else:
        told, source = _read(Path(file)), file
    settings = settings_of(told, source)
    if as_json:
        print(json.dumps(settings, indent=2))
    elif env:
        for name, value in settings.items():
            print(f"{name}={value}")
    else:
        for name, value in settings.items():
            print(f"export {name}={shlex.quote(value)}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; `terraform output -json > {path}` makes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); give what `terraform output -json` printed") from error
