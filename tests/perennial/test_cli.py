"""What a person at a terminal sees: one sentence with the value and the mend, an exit status, never a traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from features.lake import Lake
from features.replay import replay
from perennial.settings import Settings
from pipelines.spec import load_pipeline

if TYPE_CHECKING:
    from conftest import Broker

DAY = (datetime(2013, 1, 5, tzinfo=UTC), datetime(2013, 1, 6, tzinfo=UTC))


def perennial(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-m", "perennial.cli", *arguments]
    return subprocess.run(
        command, env={**own, "PERENNIAL_HOME": str(home), **environment}, capture_output=True, text=True, timeout=120
    )


def refused(answer: subprocess.CompletedProcess[str], *said: str) -> None:
    """The command ended with status 2 and one sentence that says all of this."""
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr + answer.stdout
    sentence = answer.stderr.strip().splitlines()[-1]
    assert sentence.startswith("perennial: ")
    for part in said:
        assert part in sentence


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a full disk needs a file system of its own, and this user may not mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_help_answers_within_half_a_second_and_lists_every_verb(tmp_path: Path) -> None:
    perennial(tmp_path, "--help")
    began = time.perf_counter()
    answer = perennial(tmp_path, "--help")
    assert answer.returncode == 0
    for verb in (
        "demo",
        "up",
        "replay",
        "ingest",
        "score",
        "monitor",
        "retrain",
        "rollout",
        "release",
        "rollback",
        "init",
    ):
        assert f" {verb} " in answer.stdout
    # The bound is 0.5 s on an idle machine (docs/performance.md); here it only has to be free of heavy imports.
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize("verb", ["ingest", "score", "monitor", "retrain", "rollout"])
def test_an_unknown_pipeline_is_named_with_those_there_are(tmp_path: Path, verb: str) -> None:
    refused(perennial(tmp_path, verb, "fligths"), "'fligths'", "flights", "perennial init")


def test_a_wrong_date_is_named_with_the_right_form(tmp_path: Path) -> None:
    refused(perennial(tmp_path, "monitor", "flights", "--as-of", "1st of May"), "'1st of May'", "2013-03-01")
    refused(perennial(tmp_path, "replay", "flights", "--from", "2013-13-01", "--to", "2013-12-01"), "'2013-13-01'")
    refused(perennial(tmp_path, "replay", "flights", "--from", "2013-03-02", "--to", "2013-03-01"), "not before")
    refused(perennial(tmp_path, "demo", "--through", "2014-05-01"), "2014-05-01", "2013-12-31")


def test_an_unreachable_broker_is_named_with_its_address_and_setting(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        answer = perennial(
            tmp_path,
            "replay",
            "flights",
            "--from",
            "2013-03-01",
            "--to",
            "2013-03-02",
            PERENNIAL_KAFKA_BOOTSTRAP_SERVERS=address,
        )
    refused(answer, address, "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS", "perennial up")


def test_a_prefect_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    answer = perennial(tmp_path, "score", "flights", PREFECT_API_URL="http://127.0.0.1:9/api")
    refused(answer, "http://127.0.0.1:9/api", "PREFECT_API_URL")


def test_a_prefect_address_that_is_none_is_named(tmp_path: Path) -> None:
    refused(perennial(tmp_path, "score", "flights", PREFECT_API_URL="nonsense"), "nonsense", "PREFECT_API_URL")


@pytest.mark.parametrize("value", ["secret", '"secret"', '{"password": "secret"'])
@pytest.mark.parametrize("name", ["PERENNIAL_KAFKA_OPTIONS", "PERENNIAL_LAKE_OPTIONS"])
def test_a_setting_that_cannot_be_read_is_named_and_not_repeated(tmp_path: Path, name: str, value: str) -> None:
    good = {"PERENNIAL_KAFKA_OPTIONS": '{"acks": 1}', "PERENNIAL_LAKE_OPTIONS": '{"s3.region": "here"}'}
    answer = perennial(tmp_path, "rollback", "flights", "--reason", "because", **{**good, name: value})
    refused(answer, f"perennial: {name} ", "unset it")
    assert "secret" not in answer.stderr + answer.stdout
    assert (good.keys() - {name}).pop() not in answer.stderr


@pytest.mark.parametrize("speed", ["nan", "0"])
def test_a_speed_that_is_not_above_zero_is_refused(tmp_path: Path, speed: str) -> None:
    days = ("--from", "2013-03-01", "--to", "2013-03-02")
    refused(perennial(tmp_path, "replay", "flights", *days, "--speed", speed), f"--speed {float(speed)}", "above 0")


def test_a_half_written_stack_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"pid": 12')
    answer = perennial(tmp_path, "rollback", "flights", "--reason", "because")
    refused(answer, "flights", "no champion")


def test_a_full_disk_loses_nothing_and_the_next_run_goes_on(small_disk: Path, tmp_path: Path, broker: Broker) -> None:
    spec = load_pipeline("flights")
    reached = Settings(home=tmp_path / "home", kafka_bootstrap_servers=broker.address)
    produced = replay(reached, spec, *DAY)
    # What is on the disk already leaves room for a part of the day only.
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (3 * 2**20 - 60_000))
    warehouse = small_disk / "lake"
    where = {
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": broker.address,
        "PERENNIAL_LAKE_WAREHOUSE": warehouse.as_uri(),
    }
    refused(perennial(tmp_path / "home", "ingest", "flights", **where), "run")
    filler.unlink()
    again = perennial(tmp_path / "home", "ingest", "flights", **where)
    assert again.returncode == 0, again.stderr
    lake = Lake(reached.model_copy(update={"lake_warehouse": warehouse.as_uri()}), "flights")
    for event in spec.events:
        stored = lake.read(event.table)
        assert stored.height == stored.unique(event.event_id).height == produced[event.topic]


def test_the_demo_removes_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    left_out = {"PERENNIAL_DATABASE_URL": "postgresql://db/real", "PREFECT_API_URL": "http://prefect.example/api"}
    answer = perennial(tmp_path, "demo", **left_out)
    refused(answer, str(tmp_path / "demo"), "stack.lock", "PERENNIAL_HOME")
    assert "leaves out PERENNIAL_DATABASE_URL, PREFECT_API_URL" in " ".join(answer.stdout.split())
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["thesis.txt"]


def test_json_of_the_demo_needs_a_folder_that_is_there(tmp_path: Path) -> None:
    refused(perennial(tmp_path, "demo", "--json", str(tmp_path / "no" / "out.json")), "no/out.json", "make it first")


def test_a_port_in_use_is_named_with_the_option(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        refused(perennial(tmp_path, "up", "--mlflow-port", str(port)), str(port), "--mlflow-port")


def test_metrics_are_served_by_a_follower_alone(tmp_path: Path) -> None:
    refused(perennial(tmp_path, "ingest", "flights", "--metrics-port", "9100"), "--metrics-port 9100", "--follow")
    refused(perennial(tmp_path, "ingest", "flights", "--every-s", "3"), "--every-s 3", "--follow")
