"""`perennial doctor`: how its checks are run, this computer, and the command."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from findings_seen import ERROR, FAIL, PASS, said, status, status_of
from packaging.requirements import Requirement

from perennial.doctor import machine
from perennial.doctor.findings import Finding, all_taken_back, passed, run_checks, to_be_taken_back
from perennial.errors import UsageError

if TYPE_CHECKING:
    from conftest import Broker


def test_checks_run_side_by_side_and_one_that_hangs_keeps_nobody() -> None:
    forever = threading.Event()
    both = threading.Barrier(2, timeout=10)

    def meets() -> Finding:
        both.wait()  # alone it would never come on
        return passed("met")

    def hangs() -> Finding:
        forever.wait()
        return passed("never")

    begin = time.monotonic()
    found = run_checks({"hangs": hangs, "one": meets, "other": meets}, limit_s=1.0)
    assert time.monotonic() - begin < 5
    assert [f.verdict.status for f in found.values()] == [ERROR, PASS, PASS]
    assert list(found) == ["hangs", "one", "other"]
    assert "no answer within 1 s" in said(found["hangs"])
    forever.set()


def test_the_end_waits_until_what_was_written_to_try_is_taken_back(tmp_path: Path) -> None:
    slow, trace = threading.Event(), tmp_path / "perennial-doctor-1"

    def tries() -> Finding:
        with to_be_taken_back():
            trace.touch()
            slow.wait(20)
            trace.unlink()
        return passed("late")

    found = run_checks({"tries": tries}, limit_s=0.5)
    assert status_of(found, "tries") is ERROR
    assert not all_taken_back(0.1)
    assert trace.exists()
    threading.Timer(0.2, slow.set).start()
    assert all_taken_back(20)
    assert not trace.exists()


def test_a_check_that_breaks_is_an_error_and_its_words_are_kept_back() -> None:
    def breaks() -> Finding:
        raise RuntimeError("postgresql://me:hunter2@db")

    def refuses() -> Finding:
        raise UsageError("the value is 3; write 4")

    found = run_checks({"breaks": breaks, "refuses": refuses}, limit_s=5.0)
    assert status_of(found, "breaks") is ERROR
    assert "hunter2" not in said(found["breaks"])
    assert "RuntimeError" in said(found["breaks"])
    assert (status_of(found, "refuses"), found["refuses"].verdict.reason) == (FAIL, "the value is 3; write 4")


def test_an_old_python_fails() -> None:
    assert status(machine.python((3, 10, 9))) is FAIL
    assert status(machine.python()) is PASS


def test_packages_as_they_are_installed_fit_what_perennial_asks_for() -> None:
    assert said(machine.packages()).startswith("4"), said(machine.packages())
    assert status(machine.packages()) is PASS


def test_a_package_of_the_wrong_version_fails_and_says_why_it_matters() -> None:
    wrong = [Requirement("fastapi<0.1"), Requirement("no-such-package>=1"), Requirement("rich>=1")]
    wrong.append(Requirement("also-missing; python_version < '3'"))
    finding = machine.packages(wrong)
    assert status(finding) is FAIL
    assert "Prefect's server does not start" in said(finding)
    assert "no-such-package is not installed" in said(finding)
    assert "rich" not in said(finding)
    assert "also-missing" not in said(finding)


def test_a_home_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine.home(tmp_path / "file" / "home")
    assert status(finding) is FAIL
    assert "is a file" in said(finding)
    assert status(machine.home(Path("/proc/perennial"))) is FAIL  # where not even root can make a folder
    assert status(machine.home(Path("/sys"))) is FAIL


def test_a_home_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    finding = machine.home(tmp_path / "a" / "b")
    assert "not made yet" in said(finding)
    assert "free_gb" in finding.verdict.measurements
    assert list(tmp_path.iterdir()) == []


def doctor(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:

    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PERENNIAL_HOME": str(home), "COLUMNS": "80"}
    command = [sys.executable, "-m", "perennial.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)


def test_a_new_computer_is_told_what_is_not_there_and_nothing_is_made(tmp_path: Path) -> None:
    ended = doctor(tmp_path / "home", "flights")
    assert "topics" in ended.stdout
    assert "perennial up" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert not (tmp_path / "home").exists()


def test_a_failure_is_status_1_and_json_says_which(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    monkeypatch.setenv("PERENNIAL_KAFKA_BOOTSTRAP_SERVERS", broker.address)
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", f"postgresql+psycopg://me:hunter2@127.0.0.1:{free_port}/db")
    ended = doctor(tmp_path / "home", "--json")
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["status"]) == (1, "FAIL")
    assert told["checks"]["kafka"]["status"] == "PASS"
    assert told["checks"]["ledger"]["status"] == "FAIL"
    assert "hunter2" not in ended.stdout + ended.stderr


@pytest.fixture
def mute() -> Iterator[str]:
    """Somebody who takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_addresses_that_never_answer_hold_nobody_up(tmp_path: Path, mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": mute,
        "PERENNIAL_DATABASE_URL": f"postgresql+psycopg://me:hunter2@{mute}/db",
        "PERENNIAL_LAKE_WAREHOUSE": "s3://bucket/lake",
        "PERENNIAL_LAKE_CATALOG_URI": "glue://us-east-1",
        "PERENNIAL_LAKE_OPTIONS": json.dumps({"s3.endpoint": f"http://{mute}", "glue.endpoint": f"http://{mute}"}),
        "PERENNIAL_ONLINE_STORE_URL": f"redis://{mute}",
        "PERENNIAL_SCHEMA_REGISTRY_URL": f"http://{mute}",
        "PERENNIAL_PUSHGATEWAY_URL": f"http://{mute}",
        "PERENNIAL_SCORING_URL": f"http://{mute}",
        "MLFLOW_TRACKING_URI": f"http://{mute}",
        "PREFECT_API_URL": f"http://{mute}/api",
        "AWS_ENDPOINT_URL": f"http://{mute}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "kept-out-of-messages",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ended = doctor(tmp_path / "home", "flights", "--json")
    told = json.loads(ended.stdout)
    passing = {name for name, check in told["checks"].items() if check["status"] == "PASS"}
    assert (ended.returncode, passing, ended.stderr) == (1, {"python", "packages", "home"}, "")
    assert not {"hunter2", "kept-out-of-messages"} & set(re.split(r"\W", ended.stdout))
    for check in told["checks"].values():
        assert check["status"] in ("PASS", "INCONCLUSIVE") or check["mend"] or ";" in check["reason"], check


def test_a_pipeline_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "nobody")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "nobody" in ended.stderr
