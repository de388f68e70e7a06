from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import psutil
import pytest

from perennial.claim import LOCK_FILE, Claim
from perennial.errors import StateError
from perennial.ports import StackPorts
from perennial.processes import ProcessKey, spawn, stop_trees, tail
from perennial.settings import Settings
from perennial.stack import Stack

# Starts a grandchild that ignores SIGTERM where told to, says its number, and waits.
PARENT = """
import signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def started(tmp_path: Path, code: str = PARENT) -> tuple[ProcessKey, int]:
    """A process of its own session and the number of its child."""
    child = spawn(
        "parent", [sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log", directory=tmp_path
    )
    while not (said := tail(tmp_path / "log")):
        assert child.exit_status() is None
    return child.key, int(said)


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_whole_tree_ends_even_where_a_grandchild_ignores_sigterm(tmp_path: Path) -> None:
    key, grandchild = started(tmp_path)
    stop_trees([key], grace_s=0.5)
    assert key.find() is None
    assert not lives(grandchild)


def test_an_orphan_is_found_by_the_session_of_its_dead_parent(tmp_path: Path) -> None:
    key, grandchild = started(tmp_path)
    psutil.Process(key.pid).kill()
    psutil.Process(key.pid).wait()
    assert lives(grandchild)
    stop_trees([key], grace_s=0.5)
    assert not lives(grandchild)


def test_a_process_that_got_the_number_of_another_one_is_left_alone(tmp_path: Path) -> None:
    key, grandchild = started(tmp_path)
    earlier = ProcessKey(key.pid, key.created_s - 3600)
    stop_trees([earlier], grace_s=0.5)
    assert key.find() is not None
    assert lives(grandchild)
    stop_trees([key], grace_s=0.5)


def test_stopping_what_has_ended_is_no_error(tmp_path: Path) -> None:
    child = spawn("short", [sys.executable, "-c", ""], environment=os.environ, log=tmp_path / "log", directory=tmp_path)
    assert child.popen.wait() == 0
    stop_trees([child.key])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's death")
def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from perennial.processes import spawn\n"
        "child = spawn('c', [sys.executable, '-c', 'import time; time.sleep(600)'], environment=os.environ,"
        " log=Path('log'), directory=Path.cwd())\n"
        "print(child.key.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    psutil.wait_procs([child], timeout=10)
    assert not lives(child.pid)


def test_a_child_heeds_sigint_even_if_its_owner_ignores_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = spawn(
            "child",
            [sys.executable, "-c", "import signal, sys; sys.exit(signal.getsignal(2) is signal.SIG_IGN)"],
            environment=os.environ,
            log=tmp_path / "log",
            directory=tmp_path,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.popen.wait(30) == 0


def test_a_home_has_one_owner_and_the_next_one_learns_what_was_left(tmp_path: Path) -> None:
    first = Claim(tmp_path / "home", owner=11)
    left = ProcessKey(22, 33.5)
    first.record([left])
    with pytest.raises(StateError, match=r"already runs on .*home, owned by process 11; stop that one"):
        Claim(tmp_path / "home", owner=12)
    first.release()
    second = Claim(tmp_path / "home", owner=12)
    assert second.left_over == [left]
    second.record([])
    second.release()
    assert Claim(tmp_path / "home", owner=13).left_over == []


def test_what_was_left_is_read_once_the_home_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Claim(tmp_path, owner=11)
    left = ProcessKey(22, 33.5)
    lock = fcntl.flock

    def end_of_the_first(file: IO[str], how: int) -> None:
        first.record([left])
        first.release()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_of_the_first)
    assert Claim(tmp_path, owner=12).left_over == [left]


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"pid": 1', '{"children": [{"pid": 1}]}', '{"children": 4}', '{"children": [5]}']
)
def test_a_damaged_lock_file_is_as_good_as_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    first = Claim(tmp_path, owner=11)
    assert first.left_over == []
    with pytest.raises(StateError, match="already runs"):
        Claim(tmp_path, owner=12)
    first.release()


def test_a_stack_file_that_cannot_be_removed_keeps_no_child_running(tmp_path: Path) -> None:
    (tmp_path / "stack.json" / "x").mkdir(parents=True)
    stack = Stack(Settings(home=tmp_path), StackPorts(), {}, Claim(tmp_path, os.getpid()), tmp_path, lambda *_: None)
    child = stack._spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(OSError, match=r"stack\.json"):
        stack.stop()
    assert not lives(child.key.pid)
    stack.stop()
    assert Claim(tmp_path, owner=12).left_over == []


def test_a_home_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot be written .*give another one in PERENNIAL_HOME"):
        Claim(tmp_path / "file" / "home", owner=1)


def test_the_tail_of_a_log_skips_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n\ntwo\n  \nthree\n\n")
    assert tail(tmp_path / "log", lines=2) == "two\nthree"
    assert tail(tmp_path / "none") == ""
