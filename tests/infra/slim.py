"""The packages of the service's image: what its lock file names, out of the packages that are installed here, slimmed as
in the image."""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

MEGABYTE = 1e6


@dataclass(frozen=True)
class Locked:
    """What a lock file says for this computer."""

    versions: dict[str, str]

    @classmethod
    def read(cls, lock: Path) -> Locked:
        """The packages of a lock file, by normal name; those of other platforms are left out."""
        lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
        wanted = [requirement for requirement in map(Requirement, lines) if not _elsewhere(requirement)]
        return cls({normal(one.name): str(one.specifier).removeprefix("==") for one in wanted})


def image_packages(lock: Path, prune: Path, folder: Path) -> Path:
    """Make a site-packages as the Dockerfile does: with what a lock file names and nothing else, slimmed, and compiled."""
    if shutil.which("strip") is None:
        pytest.skip("strip (binutils) is not installed")
    for name in Locked.read(lock).versions:
        for to, at in _files(distribution(name)):
            (folder / to).parent.mkdir(parents=True, exist_ok=True)
            # Copied, never linked: what is stripped here is used elsewhere.
            shutil.copy2(at, folder / to)
    subprocess.run(["sh", prune, folder], check=True)
    compileall.compile_dir(folder, quiet=2, workers=0)
    return folder


def sizes_mb(folder: Path) -> dict[str, float]:
    """Megabytes of what is in a site-packages, by package or module."""
    return {
        top.name: sum(file.stat().st_size for file in (top.rglob("*") if top.is_dir() else [top]) if file.is_file())
        / MEGABYTE
        for top in folder.iterdir()
    }


def compiled_mb(folder: Path) -> float:
    """Megabytes of compiled Python in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.pyc")) / MEGABYTE


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(package: Distribution) -> list[tuple[Path, Path]]:
    """Where a package's files go below site-packages, and where they lie; without its commands and what is compiled."""
    found = [(Path(file), Path(str(file.locate()))) for file in package.files or ()]
    return [(to, at) for to, at in found if ".." not in to.parts and to.suffix != ".pyc" and at.is_file()]


def _elsewhere(requirement: Requirement) -> bool:
    return requirement.marker is not None and not requirement.marker.evaluate()
