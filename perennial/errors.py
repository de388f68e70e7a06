"""Every error perennial raises on purpose.

    PerennialError                 one sentence: what is wrong, the value, the mend
    +-- UsageError                 the caller's input: unknown pipeline, bad date, bad option       (exit status 2)
    +-- UnreachableError           a foreign system does not answer at its address                  (exit status 2)
    +-- StateError                 what is on disk or in a store cannot be used as it is             (exit status 2)
    |   +-- ConflictError          somebody else wrote first; read again and retry
    |   +-- BlockedError           a full disk, a locked file: nothing was written, later it may be
    +-- StageError                 a stage ran and did not do its work                              (exit status 1)

The command line prints the sentence and no traceback. Anything else that escapes is a defect and keeps its traceback.
"""

from __future__ import annotations

import errno


class PerennialError(Exception):
    """An expected failure, told in one sentence with the offending value and the mend.

    Args:
        what: the sentence.
        again: its end for whoever ran a command, such as ", run it again"; a program that goes on by itself tells `what`.
    """

    exit_status = 1

    def __init__(self, what: str, again: str = "") -> None:
        super().__init__(what, again)
        self.what = what
        self._again = again

    def __str__(self) -> str:
        return self.what + self._again


class UsageError(PerennialError):
    """The caller asked for something that cannot be: the sentence says which value and what is allowed."""

    exit_status = 2


class UnreachableError(PerennialError):
    """A foreign system did not answer: the sentence names its address and the setting that holds it."""

    exit_status = 2


class StateError(PerennialError):
    """Stored state is missing, half-written or of another version: the sentence names it and how to go on."""

    exit_status = 2


class ConflictError(StateError):
    """Another writer committed first; nothing of this write was kept. Read the new state and try again."""


class BlockedError(StateError):
    """The machine did not let us write: the disk is full, a file is locked. Once that is mended the same goes on."""


class StageError(PerennialError):
    """A stage of the loop ran and did not do its work."""


def told(error: OSError) -> str:
    """What the operating system refused, as a sentence with the mend."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full{where}; nothing that was committed is lost. Make room, then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed to write{where} ({error.strerror}); choose another PERENNIAL_HOME or mend its permissions"
    return f"{error.strerror or error}{where}; mend it, then run the same command again"
