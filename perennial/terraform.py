"""What Terraform tells: its outputs and plans, from a file, standard input, or Terraform itself in infra/terraform."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from perennial.errors import StateError, UsageError

FOLDER = Path(__file__).parent.parent / "infra" / "terraform"
LIMIT_S = 120


def read_text(file: Path) -> str:
    """The text of a file, or of standard input for `-`.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    try:
        told = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        # PowerShell's > writes UTF-16 in its old versions, and UTF-8 with a mark in front.
        return told.decode("utf-16" if told[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}); name what Terraform wrote") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text; a plan becomes JSON by `terraform show -json {file}`") from error


def parsed(text: str, source: str, command: str) -> dict[str, Any]:
    """A JSON object that Terraform wrote.

    Raises:
        UsageError: it is none; the sentence names the command that writes one.
    """
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        found = "is empty" if not text.strip() else "is not JSON" if told is None else "is no JSON object"
        raise UsageError(f"{source} {found}; write it with `{command}`")
    return told


def output_json(folder: Path = FOLDER) -> str:
    """What `terraform output -json` says in a folder.

    Raises:
        UsageError: Terraform is not installed.
        StateError: it refused.
    """
    program = shutil.which("terraform")
    if program is None:
        raise UsageError(
            "terraform is not installed here; name a file that `terraform output -json` wrote, or - for a pipe"
        )
    command = [program, f"-chdir={folder}", "output", "-json", "-no-color"]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StateError(f"`terraform output` in {folder} took over {LIMIT_S} s; look at its backend") from error
    if ended.returncode:
        lines = [line.strip(" │╷╵\n") for line in ended.stderr.splitlines()]
        why = next((line for line in lines if line.startswith("Error:")), next(filter(None, lines), "no reason"))
        raise StateError(f"`terraform output` in {folder} failed ({why}); run `terraform init` there, then again")
    return ended.stdout
