from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulators
from terraform import Terraform, plugin_mirror

# `make test-infra` asks for these tests by name: there, what is missing is a failure.
REQUIRED = os.environ.get("PERENNIAL_INFRA") == "required"
FIGURES: list[str] = []


def missing(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def _terraform_is_here() -> None:
    if shutil.which("terraform") is None:
        missing("Terraform is not installed; install 1.9 or newer for the tests of infra/terraform")


@pytest.fixture(scope="session")
def initialized(_terraform_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """A copy of the tree with its provider, which plans and applies nothing."""
    made = Terraform(tmp_path_factory.mktemp("initialized"))
    result = made.init()
    if result.status and plugin_mirror() is None and "registry" in result.output:
        missing(
            f"the AWS provider is in no mirror of this computer, and the registry does not answer: {result.output[-400:]}"
        )
    assert result.status == 0, result.output
    return made


@pytest.fixture(scope="session")
def running_emulators(
    initialized: Terraform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[emulators.Emulators]:
    if not emulators.ministack_python().exists():
        missing(f"MiniStack is not installed: {emulators.ministack_python()} is missing; `make test-infra` installs it")
    with emulators.running(tmp_path_factory.mktemp("emulators")) as running:
        yield running


@pytest.fixture(scope="session")
def checkov() -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Judges a folder of Terraform by checkov's own rules, without a network."""
    program = emulators.TOOLS / "checkov" / "bin" / "checkov"
    if not program.exists():
        missing(f"checkov is not installed: {program} is missing; `make test-infra` installs it")

    def judge(folder: Path) -> subprocess.CompletedProcess[str]:
        what = ["--directory", str(folder), "--framework", "terraform", "--skip-download", "--output", "json"]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LOG_LEVEL": "ERROR"}
        return subprocess.run([str(program), *what], capture_output=True, text=True, env=environment, timeout=300)

    return judge


@pytest.fixture(scope="session")
def kubectl() -> None:
    """It is installed: it renders infra/kubernetes, and asks no cluster for it."""
    if shutil.which("kubectl") is None:
        missing("kubectl is not installed; install 1.27 or newer for the tests of infra/kubernetes")


@pytest.fixture(scope="session")
def prefect_kubernetes() -> None:
    """What makes jobs of flow runs is installed."""
    if not emulators.PREFECT_KUBERNETES.is_dir():
        missing(f"{emulators.PREFECT_KUBERNETES} is missing; `make test-infra` installs it")


@pytest.fixture(scope="session")
def tools() -> Callable[[str, str], Path]:
    """A command of one of the environments that `make test-infra` makes, by environment and name."""

    def find(environment: str, name: str) -> Path:
        program = emulators.TOOLS / environment / "bin" / name
        if not program.exists():
            missing(f"{name} is not installed: {program} is missing; `make test-infra` installs it")
        return program

    return find


@pytest.fixture(scope="session")
def figures() -> Callable[[str], None]:
    """Tell a figure, to be printed after the tests."""
    return FIGURES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("infra/terraform")
        for figure in FIGURES:
            terminalreporter.write_line(figure)
