"""A new pipeline's deployments, in the prefect.yaml that people edit and deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.deploy import add_deployments
from perennial.errors import StateError

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture
def prefect_file(tmp_path: Path) -> Path:
    text = (PROJECT / "prefect.yaml").read_text()
    (tmp_path / "prefect.yaml").write_text(text)
    return tmp_path / "prefect.yaml"


def deployments(file: Path, pipeline: str) -> dict[str, Any]:
    return {
        d["entrypoint"]: d
        for d in yaml.safe_load(file.read_text())["deployments"]
        if d["parameters"]["pipeline"] == pipeline
    }


def test_a_new_pipeline_gets_every_flow_with_its_own_automations(prefect_file: Path) -> None:
    before = deployments(prefect_file, "flights")
    assert add_deployments(prefect_file, "payments")
    found = deployments(prefect_file, "payments")
    assert found.keys() == before.keys()
    assert {d["name"] for d in found.values()} == {"payments"}
    for entrypoint in ("flows.retrain.retrain", "flows.rollout.rollout"):
        (trigger,) = found[entrypoint]["triggers"]
        assert trigger["match"] == {"prefect.resource.id": "perennial.pipeline.payments"}
        assert trigger["parameters"] == before[entrypoint]["triggers"][0]["parameters"]
    assert "flights" not in str(found)
    assert deployments(prefect_file, "flights") == before


def test_what_people_wrote_stays_as_it_is_and_a_second_time_adds_nothing(prefect_file: Path) -> None:
    before = prefect_file.read_text()
    add_deployments(prefect_file, "payments")
    after = prefect_file.read_text()
    assert after.startswith(before.rstrip())
    assert not add_deployments(prefect_file, "payments")
    assert prefect_file.read_text() == after


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments: []\n", "names no pipeline's deployments"),
        ("deployments: [", "names no pipeline's deployments"),
        ("name: x\n", "names no pipeline's deployments"),
        ("deployments:\n  - {name: a, parameters: {pipeline: a}}\npull: null\n", "by hand|names no pipeline"),
    ],
)
def test_a_file_that_cannot_take_them_is_left_alone(prefect_file: Path, text: str, said: str) -> None:
    prefect_file.write_text(text)
    with pytest.raises(StateError, match=said):
        add_deployments(prefect_file, "payments")
    assert prefect_file.read_text() == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"prefect\.yaml cannot be read"):
        add_deployments(tmp_path / "prefect.yaml", "payments")
