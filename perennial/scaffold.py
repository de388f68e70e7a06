"""`perennial init NAME`: a new pipeline folder that works as it is, to be changed part by part."""

from __future__ import annotations

import keyword
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

from perennial.errors import StateError, UsageError
from pipelines.spec import pipeline_names

TEMPLATE = "perennial.template"
TEMPLATE_NAME = "pipeline_name"
MAX_NAME_LENGTH = 40
TAKEN = frozenset({"spec", TEMPLATE_NAME})


def init_pipeline(name: str, directory: Path) -> Path:
    """Write a new pipeline: `directory/name/` with its events, features, contract and made-up history.

    Args:
        name: lower case letters, digits and underscores, a letter first; its topics become `<name>.<event>.v1`.
        directory: where pipelines live; made if it is not there.

    Returns:
        The new folder. It appears whole or not at all.

    Raises:
        UsageError: the name cannot be one, or is taken.
        StateError: the folder cannot be written.
    """
    check_new(name, directory)
    target = directory / name
    unfinished = directory / f".{name}.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        for file_name, text in _files(name).items():
            (unfinished / file_name).write_text(text, encoding="utf-8")
        unfinished.rename(target)
    except OSError as error:
        raise StateError(
            f"{target} cannot be written ({error.strerror}); make room, or set PERENNIAL_PIPELINES_DIR to a folder of yours"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def check_new(name: str, directory: Path) -> None:
    """Raise UsageError unless a pipeline of that name can be written to that folder of pipelines."""
    _check_name(name)
    if (directory / name).exists():
        raise UsageError(f"{directory / name} is already there; choose another name, or remove it first")
    if name in set(pipeline_names()):
        raise UsageError(f"there is already a pipeline {name!r}; choose another name")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > MAX_NAME_LENGTH:
        raise UsageError(
            f"{name!r} cannot name a pipeline; use up to {MAX_NAME_LENGTH} lower case letters, digits and underscores, "
            "a letter first, such as payments"
        )
    if keyword.iskeyword(name) or name in TAKEN:
        raise UsageError(f"{name!r} means something else in Python or in perennial; choose another name")


def _files(name: str) -> dict[str, str]:
    """The template's files with the pipeline's name in place of its own, by file name."""
    return {
        entry.name: entry.read_text(encoding="utf-8").replace(TEMPLATE_NAME, name)
        for entry in files(TEMPLATE).iterdir()
        if entry.name.endswith(".py")
    }
