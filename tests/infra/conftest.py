from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulators
import questions
from terraform import Result, Terraform, plugin_mirror

# `make test-infra` asks for these tests by name: there, what is missing is a failure.
REQUIRED = os.environ.get("PERENNIAL_INFRA") == "required"
FIGURES: list[str] = []
# The longest first.
QUESTIONS = {
    "refusals": questions.refusals,
    "plans": questions.plans,
    "judgement": questions.judgement,
    "careless_plans": questions.careless_plans,
    "validity": questions.validity,
}


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
def asked(
    request: pytest.FixtureRequest, initialized: Terraform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Any]]]:
    """The questions that the tests of this session have, asked two at a time as soon as the first is."""
    wanted = {fixture for item in request.session.items for fixture in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(2) as two:
        yield {
            name: two.submit(question, initialized, tmp_path_factory.mktemp(name))
            for name, question in QUESTIONS.items()
            if name in wanted
        }


@pytest.fixture(scope="session")
def validity(asked: Mapping[str, Future[Result]]) -> Result:
    return asked["validity"].result()


@pytest.fixture(scope="session")
def plans(asked: Mapping[str, Future[Result]]) -> Result:
    return asked["plans"].result()


@pytest.fixture(scope="session")
def careless_plans(asked: Mapping[str, Future[Result]]) -> Result:
    return asked["careless_plans"].result()


@pytest.fixture(scope="session")
def refusals(asked: Mapping[str, Future[dict[str, str]]]) -> dict[str, str]:
    return asked["refusals"].result()


@pytest.fixture(scope="session")
def judgement(asked: Mapping[str, Future[dict[str, Any]]]) -> dict[str, Any]:
    if not questions.CHECKOV.exists():
        missing(f"checkov is not installed: {questions.CHECKOV} is missing; `make test-infra` installs it")
    return asked["judgement"].result()


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
