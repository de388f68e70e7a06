"""This computer: Python, its packages, the state root, a GPU."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.doctor.findings import Finding, failed, passed, unclear

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
LEAST_FREE_GB, SCARCE_FREE_GB = 1.0, 5.0
# What happens to who has another version of these.
BECAUSE = {
    "fastapi": "Prefect's server does not start",
    "sqlalchemy": "Prefect's schedules silently never fire",
    "prefect": "its workers and its server must agree",
    "torch": "models may not load",
}


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python can run perennial."""
    told = ".".join(map(str, version))
    if version < (3, 11):
        return failed(f"Python {told}", "install Python 3.11 or newer")
    return passed(f"Python {told}", version=float(f"{version[0]}.{version[1]:02d}"))


def packages(needed: list[Requirement] | None = None) -> Finding:
    """Whether every package that perennial asks for is installed in a version it can use."""
    needed = _needed() if needed is None else needed
    if not needed:
        return unclear("what perennial needs is written nowhere here", "install it with its metadata: pip install -e .")
    wrong = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            there = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            why = BECAUSE.get(requirement.name.lower())
            wrong.append(f"{requirement.name} is {there}, not {requirement.specifier}{f' ({why})' if why else ''}")
    if wrong:
        return failed("; ".join(wrong), "pip install -r requirements.lock", wrong=len(wrong))
    return passed(f"{len(needed)} packages, each in a version that fits", packages=len(needed))


def _needed() -> list[Requirement]:
    import tomllib

    from packaging.requirements import Requirement

    if PYPROJECT.is_file():
        told = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["dependencies"]
    else:
        try:
            told = [line for line in metadata.requires("perennial") or () if "extra ==" not in line]
        except metadata.PackageNotFoundError:
            told = []
    return [Requirement(line) for line in told]


def writable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, or made where it is to be; None if something can. Nothing is left there."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        return f"{there} is a file"
    if there != folder:
        return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{there} cannot be written to ({error.strerror})"


def home(root: Path) -> Finding:
    """Whether state can be kept below the root, and how much."""
    mend = "choose another PERENNIAL_HOME, or mend its permissions"
    if why := writable(root):
        return failed(why, mend)
    there = next(each for each in (root, *root.parents) if each.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    told = f"{root}{'' if there == root else ', not made yet'}: {free_gb:,.1f} GB free"
    if free_gb < LEAST_FREE_GB:
        return failed(told, "make room, or choose another PERENNIAL_HOME", free_gb=free_gb)
    if free_gb < SCARCE_FREE_GB:
        return unclear(told, "a year of events takes some gigabytes: make room", free_gb=free_gb)
    return passed(told, free_gb=free_gb)


def gpu() -> Finding:
    """Whether PyTorch sees a GPU; a model is fitted without one as well, only later."""
    import torch

    if torch.cuda.is_available():
        return passed(f"PyTorch {torch.__version__} sees {torch.cuda.get_device_name(0)}")
    return unclear(
        f"PyTorch {torch.__version__} sees no GPU; it fits on the processor",
        "nothing, if fits are quick enough; on AWS, retrains run on GPU nodes",
    )
