"""The largest process of a family, while it lives."""

from __future__ import annotations

import threading

import psutil

SAMPLE_S = 0.5


class PeakMemory:
    """Samples the resident memory of this process and all below it, in the background, while the block runs."""

    def __init__(self) -> None:
        self._peak_mb, self._process = 0.0, ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def peak(self) -> tuple[float, str]:
        """Most resident memory one process had, in MB, and what it was."""
        return round(self._peak_mb, 1), self._process

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stopped.wait(SAMPLE_S):
            for process in [own, *own.children(recursive=True)]:
                try:
                    used = process.memory_info().rss / 1e6
                    if used > self._peak_mb:
                        self._peak_mb, self._process = used, " ".join(process.cmdline()[1:5])
                except psutil.Error:
                    continue
