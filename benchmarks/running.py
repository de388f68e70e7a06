"""What the benchmarks share: a broker of their own, a process that does one thing and tells its memory, and the output."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from perennial.ports import HOST, free_ports
from perennial.services import command
from perennial.settings import Settings

STARTS_WITHIN_S = 20.0


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="perennial-benchmark-") as folder:
        yield Path(folder)


@contextmanager
def broker(root: Path) -> Iterator[Settings]:
    """The embedded broker, with its data below `root`; settings that point at it."""
    import socket

    root.mkdir(parents=True, exist_ok=True)
    ports = free_ports()
    with (root / "kafka.log").open("wb") as log:
        process = subprocess.Popen(command("kafka", root, ports), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                socket.create_connection((HOST, ports.kafka), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield Settings(home=root, kafka_bootstrap_servers=f"{HOST}:{ports.kafka}")
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Ran:
    """What a process did: its result, and the most memory it held (resident, MB)."""

    result: Any
    peak_rss_mb: float


def alone(work: Callable[..., Any], *arguments: Any) -> Ran:
    """Do something in a new process, so that its memory is its own and nothing is warm."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_watched, (work, arguments))


def _watched(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Ran:
    me, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], me.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    result = work(*arguments)
    done.set()
    watcher.join()
    return Ran(result, round(max(peak[0], me.memory_info().rss) / 1e6, 1))


def fastest(times: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of some times, and the last result."""
    best, result = float("inf"), None
    for _ in range(times):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def tell(figures: dict[str, Any]) -> None:
    """One JSON object with --json, else a line a figure."""
    if "--json" in sys.argv[1:]:
        print(json.dumps(figures))
        return
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:,.2f}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def quiet() -> None:
    """Other people's programs say nothing meanwhile."""
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["FEAST_USAGE"] = "False"
