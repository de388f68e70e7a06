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
from perennial.claim import Claim
from perennial.errors import StageError, StateError
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


def an_earlier_demo(home: Path) -> None:
    for file in ("stack.lock", "lake.db", "lake/a/b.parquet", "mlflow/mlflow.db"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text("")
    (home / "linked").symlink_to(home.parent / "elsewhere")


def test_an_earlier_demo_is_cleared_and_so_is_an_empty_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "thesis.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text("years of work")
    for home in (tmp_path / "earlier", tmp_path / "empty"):
        home.mkdir()
    an_earlier_demo(tmp_path / "earlier")
    for home in (tmp_path / "earlier", tmp_path / "empty"):
        demo._clear(home)
        assert [path.name for path in Path(home).iterdir()] == ["stack.lock"]
    assert elsewhere.read_text() == "years of work"


@pytest.mark.parametrize("call", ["shutil.rmtree", "os.rmdir", "os.unlink"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_demo_that_was_cut_off_while_it_cleared_is_cleared_by_the_next(tmp_path: Path, call: str, at: int) -> None:
    an_earlier_demo(tmp_path / "demo")
    home = str(tmp_path / "demo")
    # Killed as its `at`th removal of that kind has ended.
    cut_off = f"""
import os, shutil, signal
from pathlib import Path
from perennial import demo
real, calls = {call}, []
def killed(*arguments, **options):
    real(*arguments, **options)
    calls.append(1)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
{call} = killed
demo._clear(Path({home!r}))
"""
    ended = subprocess.run([sys.executable, "-c", cut_off], cwd=Path(demo.__file__).parent.parent)
    assert ended.returncode == -signal.SIGKILL
    assert Path(home, "stack.lock").exists()
    demo._clear(Path(home))
    assert [path.name for path in Path(home).iterdir()] == ["stack.lock"]


def test_a_demo_whose_stack_still_runs_is_not_cleared(tmp_path: Path) -> None:
    an_earlier_demo(tmp_path / "demo")
    runs = Claim(tmp_path / "demo", os.getpid())
    with pytest.raises(StateError, match="already runs"):
        demo._clear(tmp_path / "demo")
    runs.release()
    assert (tmp_path / "demo" / "lake.db").exists()


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


def test_an_intake_ends_with_the_inner_one_of_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_produce", last_for_ever)
    with Intake(Settings(home=tmp_path), StackPorts(), "flights") as made:
        number = made._number.result()
        with made:
            made.produce(*DAY)
        assert not lives(number)


def test_an_intake_that_ends_by_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_produce", end_by_itself)
    with Intake(Settings(home=tmp_path), StackPorts(), "flights") as made:
        for _ in range(2):
            with pytest.raises(StageError, match="ended by itself"):
                asyncio.run(made.take_in(*DAY))
