"""A folder of packages that holds what a lock file names and nothing else, out of the packages that are installed here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


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


def link(names: set[str], folder: Path) -> None:
    """Link every file of these installed packages into a folder, which then serves as the only site-packages."""
    for name in names:
        for file in files(distribution(name)):
            place = folder / file[0]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file[1])


def files(package: Distribution) -> list[tuple[str, Path]]:
    """Where a package's files go below site-packages, and where they lie; as in the image, without its tests and headers.

    Without its commands and what is compiled, too.
    """
    found = [(file, Path(str(file.locate()))) for file in package.files or ()]
    return [
        (str(to), at)
        for to, at in found
        if not {"..", "tests", "include"} & set(to.parts) and to.suffix != ".pyc" and at.is_file()
    ]


def size_mb(name: str) -> float:
    """Megabytes of a package's files."""
    return sum(at.stat().st_size for _, at in files(distribution(name))) / 1e6


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _elsewhere(requirement: Requirement) -> bool:
    return requirement.marker is not None and not requirement.marker.evaluate()
