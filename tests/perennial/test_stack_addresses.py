from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from perennial.addresses import child_environment, given_addresses, local_addresses
from perennial.deploy import write_deployments
from perennial.errors import StateError
from perennial.ports import StackPorts
from perennial.settings import Settings
from perennial.stack import PROJECT

ADDRESS_VARIABLES = (
    "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS",
    "PREFECT_API_URL",
    "MLFLOW_TRACKING_URI",
    "PERENNIAL_SCORING_URL",
)


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_given_by_default(tmp_path: Path) -> None:
    assert given_addresses(Settings(home=tmp_path)) == {}


def test_an_address_in_the_environment_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert given_addresses(Settings(home=tmp_path)) == {"mlflow_tracking_uri": "http://mlflow.example:5000"}


def test_the_file_of_a_stack_that_is_gone_gives_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This process's own number stands for one that was given to another process after the owner was killed.
    addresses = local_addresses(StackPorts(scoring=8123))
    (tmp_path / "stack.json").write_text(json.dumps({"pid": os.getpid(), "addresses": addresses}))
    settings = Settings(home=tmp_path)
    assert settings.scoring_url == addresses["scoring_url"]
    assert given_addresses(settings) == {}
    monkeypatch.setenv("PERENNIAL_SCORING_URL", addresses["scoring_url"])
    assert given_addresses(Settings(home=tmp_path)) == {"scoring_url": addresses["scoring_url"]}


def test_children_are_told_where_alerts_go_and_not_asterisks(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, alert_urls=SecretStr("json://kim:pa55w0rd@example.com"))
    told = child_environment(settings, {}, own_prefect=True)
    assert told["PERENNIAL_ALERT_URLS"] == "json://kim:pa55w0rd@example.com"
    assert "PERENNIAL_ALERT_URLS" not in child_environment(Settings(home=tmp_path), {}, own_prefect=True)


def test_children_are_told_the_home_every_address_and_every_setting_that_was_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", database_url="postgresql://db/x", kafka_options={"acks": 1})
    told = child_environment(
        settings, local_addresses(StackPorts(kafka=1, prefect=2, mlflow=3, scoring=4)), own_prefect=True
    )
    assert told["PERENNIAL_HOME"] == str(tmp_path / "home")
    assert [told[name] for name in ADDRESS_VARIABLES] == [
        "127.0.0.1:1",
        "http://127.0.0.1:2/api",
        "http://127.0.0.1:3",
        "http://127.0.0.1:4",
    ]
    assert told["PERENNIAL_DATABASE_URL"] == "postgresql://db/x"
    assert json.loads(told["PERENNIAL_KAFKA_OPTIONS"]) == {"acks": 1}
    assert told["PREFECT_HOME"] == str(tmp_path / "home" / "prefect")
    # What a killed server's runs held is given back by the next one.
    assert told["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert told["DO_NOT_TRACK"] == "1"


def test_deployments_are_copied_with_their_schedules_on_or_off(tmp_path: Path) -> None:
    source = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    for schedules in (True, False):
        write_deployments(PROJECT / "prefect.yaml", tmp_path / "out" / "prefect.yaml", schedules=schedules)
        written = yaml.safe_load((tmp_path / "out" / "prefect.yaml").read_text())
        active = [s.pop("active") for d in written["deployments"] for s in d.get("schedules", [])]
        assert active == [schedules] * 5  # ingest, check, score, monitor, rollout; a retrain has no schedule
        assert written == source


@pytest.mark.parametrize("text", ["", "deployments: 3", "name: x", "a: ["])
def test_a_file_without_deployments_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(StateError, match="names no deployments"):
        write_deployments(tmp_path / "prefect.yaml", tmp_path / "out.yaml", schedules=True)


def test_the_deployments_name_no_path_of_this_machine() -> None:
    text = (PROJECT / "prefect.yaml").read_text()
    assert str(PROJECT) not in text
    assert "pull" not in yaml.safe_load(text)
