"""Child processes that do not outlive their owner: start one, know it again, stop it with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessKey:
    """A process for good: the number alone is given to another process one day, the number and the time never."""

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessKey:
        """The key of a process that runs now; psutil.NoSuchProcess if there is none."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, or None when it has ended or its number belongs to another one."""
        try:
            found = psutil.Process(self.pid)
            # psutil derives the time from the boot time, which may move by a little when the clock is set.
            same = abs(found.create_time() - self.created_s) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if same else None


@dataclass(frozen=True)
class Child:
    """A process that was started here."""

    name: str
    popen: subprocess.Popen[bytes]
    key: ProcessKey
    log: Path

    def exit_status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.popen.poll()


def spawn(name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, directory: Path) -> Child:
    """Start a process in a session of its own, with its output in a file.

    On Linux it gets SIGTERM when the *thread* that calls this ends, however it ends: call it from one that stays.
    It heeds SIGINT even if this process ignores it, as whatever a script starts with `&` does: Prefect's worker hands
    a SIGTERM on to itself as SIGINT, and would never end.

    Args:
        name: what it is called in messages.
        command: program and arguments.
        environment: the whole environment of the process.
        log: file that is overwritten with stdout and stderr.
        directory: its working directory.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        popen = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_before_exec(),
        )
    return Child(name, popen, ProcessKey.of(popen.pid), log)


def stop_trees(roots: Iterable[ProcessKey], grace_s: float = 10.0) -> None:
    """End processes with all their descendants: ask them with SIGTERM, and kill what is left after `grace_s` seconds.

    Counts as a descendant: a child of a child, and whatever is still in the session that the root leads, so that
    the orphans of a root that died first are found too. A root that is not there any more is no error.
    """
    tree: set[psutil.Process] = set()
    sessions: set[int] = set()
    for key in roots:
        root = key.find()
        if root is not None:
            tree.add(root)
            with contextlib.suppress(psutil.NoSuchProcess):
                tree.update(root.children(recursive=True))
        # A number stays taken while its session has members: when another process has it, that session is not ours.
        if root is not None or not psutil.pid_exists(key.pid):
            sessions.add(key.pid)
    tree.update(_members(sessions - {os.getsid(0)}))
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log that are not empty."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _members(sessions: set[int]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) in sessions:
                yield process


def _before_exec() -> Callable[[], object]:
    # Looked up before the fork: between fork and exec nothing may be imported.
    heed, number, default = signal.signal, signal.SIGINT, signal.SIG_DFL
    if not sys.platform.startswith("linux"):
        return lambda: heed(number, default)
    prctl = ctypes.CDLL(None).prctl
    return lambda: (heed(number, default), prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))
