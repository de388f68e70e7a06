"""One stack for one home: who owns it, and which processes an owner that was killed has left."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from perennial.errors import StateError
from perennial.processes import ProcessKey

LOCK_FILE = "stack.lock"


class Claim:
    """A lock on a home that the operating system drops when its owner ends, however it ends.

    Attributes:
        left_over: what the owner before had started and, being killed, did not stop.
    """

    def __init__(self, home: Path, owner: int) -> None:
        """Take the lock of `home` for process `owner`.

        Raises:
            StateError: another process has it, or the home cannot be written.
        """
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._file = (home / LOCK_FILE).open("a+")
        except OSError as error:
            raise StateError(
                f"the state root {home} cannot be written ({error.strerror}); give another one in PERENNIAL_HOME"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other, _ = self._read()
            self._file.close()
            raise StateError(
                f"a stack already runs on {home}, owned by process {other}; "
                "stop that one, or give another home in PERENNIAL_HOME"
            ) from error
        self._owner = owner
        # Read under the lock: until its owner has dropped it, that one may still be starting more.
        _, self.left_over = self._read()

    def record(self, children: Iterable[ProcessKey]) -> None:
        """Write down what would have to be stopped if the owner were killed now."""
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": self._owner, "children": [asdict(child) for child in children]}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Give the home back; what is recorded stays for the next owner to stop."""
        self._file.close()

    def _read(self) -> tuple[object, list[ProcessKey]]:
        """The owner and its children as written down; a damaged file is as good as an empty one."""
        self._file.seek(0)
        try:
            written = json.loads(self._file.read() or "{}")
            return written.get("pid", "unknown"), [ProcessKey(**child) for child in written.get("children", [])]
        except (ValueError, TypeError, AttributeError):
            return "unknown", []
