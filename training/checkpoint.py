"""Where a fit stands, on disk or in S3, so that a killed one goes on instead of starting again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perennial.errors import StateError
from perennial.s3 import read_object, write_bytes

CHECKPOINT_FILE = "checkpoint.bin"


@dataclass(frozen=True)
class Progress:
    """A finished part of a fit.

    Attributes:
        step: how many steps (trees, epochs) are done.
        state: the trainer's own bytes.
    """

    step: int
    state: bytes


@dataclass(frozen=True)
class Checkpoint:
    """The newest progress of one fit, in one file.

    Attributes:
        directory: where the file lies, a folder that is made when needed, or an s3:// address, which outlives the machine.
        fingerprint: of everything that decides the fit's result; progress of another fingerprint is as good as none.
    """

    directory: Path | str
    fingerprint: str

    @property
    def place(self) -> str:
        """Path or address of the file."""
        return f"{self.directory}/{CHECKPOINT_FILE}"

    def save(self, progress: Progress) -> None:
        """Replace the stored progress, so that a kill at any moment leaves either the old or the new one.

        Raises:
            StateError: the file cannot be written, such as on a full disk.
            UsageError: S3 refuses it.
            UnreachableError: S3 does not answer.
        """
        header = {
            "fingerprint": self.fingerprint,
            "step": progress.step,
            "sha256": hashlib.sha256(progress.state).hexdigest(),
        }
        content = json.dumps(header).encode() + b"\n" + progress.state
        if self.place.startswith("s3://"):
            write_bytes(content, self.place)  # an object is replaced whole, too
        else:
            write_atomically(Path(self.place), content)

    def load(self) -> Progress | None:
        """The stored progress; None if there is none, it is another fit's, or it is damaged.

        Raises:
            StateError: the file is there and cannot be read.
            UsageError: S3 refuses it.
            UnreachableError: S3 does not answer.
        """
        try:
            content = read_object(self.place) if self.place.startswith("s3://") else Path(self.place).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(
                f"checkpoint {self.place} cannot be read ({error.strerror}); remove it or mend it"
            ) from error
        line, _, state = content.partition(b"\n")
        try:
            header = json.loads(line)
            ours = header["fingerprint"] == self.fingerprint and header["sha256"] == hashlib.sha256(state).hexdigest()
            return Progress(int(header["step"]), state) if ours else None
        except (ValueError, KeyError, TypeError):
            return None


def fingerprint(parts: Mapping[str, Any], *blobs: bytes | memoryview) -> str:
    """SHA-256 over JSON-ready parts and raw bytes, in that order."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for blob in blobs:
        digest.update(len(blob).to_bytes(8, "big"))
        digest.update(blob)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name never shows half of it, and so that it outlives a power cut.

    Raises:
        StateError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # the new name is durable only once its folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(f"{path} cannot be written ({error.strerror}); make room or choose another folder") from error
