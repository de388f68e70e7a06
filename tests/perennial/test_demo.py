"""What the demo touches outside its own folder: nothing, and no process that outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from perennial import demo, intake
from perennial.errors import StageError
from perennial.intake import Intake
from perennial.ports import StackPorts
from perennial.settings import Settings, settings

DAY = (datetime(2013, 1, 5, tzinfo=UTC), datetime(2013, 1, 6, tzinfo=UTC))
OWNER = """
import time
from perennial.intake import Intake
from perennial.ports import StackPorts
from perennial.settings import Settings
if __name__ == "__main__":
    made = Intake(Settings(), StackPorts(), "flights")
    print(made._number.result(), flush=True)
    time.sleep(600)
"""


def last_for_ever(*_: object) -> int:
    time.sleep(600)
    return 0


def end_by_itself(*_: object) -> int:
    os._exit(9)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_address_is_taken_out_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "MLFLOW_TRACKING_URI": "http://real:1",
        "PERENNIAL_DATABASE_URL": "postgresql://real/db",
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": "real:2",
        "PERENNIAL_KAFKA_OPTIONS": '{"security_protocol": "SSL"}',
        "PERENNIAL_LAKE_CATALOG_URI": "postgresql://real/lake",
        "PERENNIAL_LAKE_WAREHOUSE": "s3://real",
        "PERENNIAL_ONLINE_STORE_URL": "redis://real:3",
        "PERENNIAL_SCORING_URL": "http://real:4",
        "PREFECT_API_URL": "http://real:5/api",
        "perennial_mlflow_tracking_uri": "http://real:6",
    }
    for name, value in {**given, "PERENNIAL_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    try:
        assert demo._leave_out_addresses() == list(given)
        assert settings().model_fields_set == {"home"}
        assert demo._leave_out_addresses() == []
    finally:
        settings.cache_clear()


def test_an_earlier_demo_is_cleared_and_so_is_an_empty_folder(tmp_path: Path) -> None:
    for file in ("stack.lock", "lake.db"):
        (tmp_path / file).write_text("")
    demo._clear(tmp_path)
    assert not tmp_path.exists()
    tmp_path.mkdir()
    demo._clear(tmp_path)


def test_the_intake_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    project = Path(demo.__file__).parent.parent
    environment = {**os.environ, "PERENNIAL_HOME": str(tmp_path), "PYTHONPATH": str(project)}
    owner = subprocess.Popen([sys.executable, str(tmp_path / "owner.py")], stdout=subprocess.PIPE, env=environment)
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    psutil.wait_procs([worker], timeout=5)
    assert not lives(worker.pid)


def test_leaving_the_intake_does_not_wait_for_the_call_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_produce", last_for_ever)
    made = Intake(Settings(home=tmp_path), StackPorts(), "flights")
    number = made._number.result()
    made.produce(*DAY)
    while not made._produced[DAY[1]].running():
        time.sleep(0.01)
    began = time.monotonic()
    with made:
        pass
    assert isinstance(made._produced[DAY[1]].exception(0), BrokenProcessPool)
    assert time.monotonic() - began < 10
    assert not lives(number)


def test_an_intake_that_ends_by_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_produce", end_by_itself)
    with Intake(Settings(home=tmp_path), StackPorts(), "flights") as made:
        for _ in range(2):
            with pytest.raises(StageError, match="ended by itself"):
                asyncio.run(made.take_in(*DAY))
