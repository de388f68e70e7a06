"""Two weeks of real flights on a whole stack of its own: told once, looked at by several tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from rich.console import Console
from webhook import Webhook, listening

from perennial.figures import Figures
from perennial.intake import Intake
from perennial.ports import free_ports
from perennial.settings import Settings, settings
from perennial.stack import PROJECT, Stack, start_stack
from perennial.story import Story, Telling
from pipelines.spec import add_pipelines_dir

NAME = "two_weeks"
# The flights' own pipeline with a calendar in which a drift, a retrain and a gate fit into two weeks.
PIPELINE = """
from pipelines.flights.pipeline import PIPELINE as FLIGHTS
from pipelines.spec import DriftPolicy, GatePolicy, PerformancePolicy, RetrainPolicy, Tolerance

DAY_S = 86_400
PIPELINE = FLIGHTS.model_copy(
    update={
        "name": "two_weeks",
        "drift": DriftPolicy(window_s=2 * DAY_S, reference_s=4 * DAY_S, min_rows=500),
        "performance": PerformancePolicy(window_s=3 * DAY_S, min_rows=500),
        "retrain": RetrainPolicy(cooldown_s=4 * DAY_S, min_new_labels=500, holdout_s=2 * DAY_S),
        "gate": GatePolicy(min_rows=500, tolerances=(Tolerance(metric="auc", direction="higher", absolute=0.01),)),
    }
)
"""
STORY = Story(
    pipeline=NAME,
    begin=datetime(2013, 1, 2, tzinfo=UTC),
    bootstrap_until=datetime(2013, 1, 9, tzinfo=UTC),
    through=datetime(2013, 1, 15, tzinfo=UTC),
    broken_day=datetime(2013, 1, 10, tzinfo=UTC),
    broken_records=7,
)


@dataclass(frozen=True)
class Told:
    """The story's figures, the stack it was told on, still running, and the webhook that got its alerts."""

    figures: Figures
    stack: Stack
    settings: Settings
    webhook: Webhook


@pytest.fixture(scope="session")
def two_weeks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    root = tmp_path_factory.mktemp("two-weeks")
    home, folder, project = root / "home", root / "pipelines", root / "project"
    (folder / NAME).mkdir(parents=True)
    (folder / NAME / "__init__.py").write_text("")
    (folder / NAME / "pipeline.py").write_text(PIPELINE)
    project.mkdir()
    yaml = (PROJECT / "prefect.yaml").read_text()
    (project / "prefect.yaml").write_text(
        yaml.replace("pipeline: flights", f"pipeline: {NAME}").replace(".flights}", f".{NAME}}}")
    )
    add_pipelines_dir(folder)
    before = dict(os.environ)
    os.environ.update(PERENNIAL_HOME=str(home), PERENNIAL_PIPELINES_DIR=str(folder))
    try:
        with listening() as webhook:
            os.environ["PERENNIAL_ALERT_URLS"] = webhook.url
            settings.cache_clear()
            configured = settings()
            ports = free_ports()
            stack = start_stack(configured, ports, schedules=False, project=project)
            with stack:
                with Intake(configured, ports, NAME) as intake:
                    figures = Telling(STORY, stack, intake, configured, Console(width=160)).run()
                # Other tests of this session must not find the stack in their environment.
                _restore(before)
                yield Told(figures, stack, configured, webhook)
    finally:
        _restore(before)


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    settings.cache_clear()
