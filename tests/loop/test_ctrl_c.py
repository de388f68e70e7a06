"""Ctrl-C at the terminal of a running demo."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.stack
# Prefect alone would try for more than a minute to tell a stopped server what is left.
ENDS_WITHIN_S = 40
CTRL_C = b"\x03"


def of_home(home: Path) -> list[str]:
    """Processes with that state root in their environment or their arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(home) in word for word in words):
            found.append(f"{process.pid}: {' '.join(process.cmdline())}")
    return found


class Terminal:
    """The demo in a terminal of its own, whose Ctrl-C goes to every process of its foreground."""

    def __init__(self, home: Path) -> None:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
        command = [sys.executable, "-m", "perennial.cli", "demo"]
        self.said = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # Whoever started these tests in the background has made them ignore it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(sys.executable, command, {**own, "PERENNIAL_HOME": str(home)})

    def read_until(self, sentence: str | None, limit_s: float) -> None:
        """Read until it says that, or, without a sentence, until its end."""
        until = time.monotonic() + limit_s
        while sentence is None or not re.search(sentence, self.said):
            assert time.monotonic() < until, self.said[-2000:]
            if not select.select([self._terminal], [], [], 0.5)[0]:
                continue
            try:
                self.said += os.read(self._terminal, 65_536).decode(errors="replace")
            except OSError:  # Linux says so that nobody has the other side open any more
                assert sentence is None, self.said[-2000:]
                return

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def end(self) -> int:
        """Its exit status; where it still runs, it is made to end."""
        os.kill(self.pid, signal.SIGTERM)  # nobody has waited for it yet, so the number is still its own
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_ends_a_demo_soon_with_everything_that_it_started(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home")
    try:
        terminal.read_until(r"is the first champion", 240)
        # Days are simulated now: flows run here and in the intake, and live requests are sent.
        terminal.read_until(r"0?3 March 2013", 120)
        terminal.press(CTRL_C)
        terminal.read_until(None, ENDS_WITHIN_S)
    finally:
        status = terminal.end()
    assert status == 1
    assert "Traceback" not in terminal.said
    assert "Error logging" not in terminal.said
    assert "stopped by Ctrl-C" in terminal.said
    assert of_home(tmp_path / "home") == []
