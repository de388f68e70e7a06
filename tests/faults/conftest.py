from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library
from shop import Place, Shop

PRELOADED = ["features.light_feast", "features.feast_online", "features.feast_lake", "features.feast_redis", "kafka"]
PRELOADED += ["kafka.admin", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "pyiceberg.table.update", "fastavro"]
PRELOADED += ["sqlalchemy.dialects.sqlite", "watched", "judged_shop", "great_expectations"]


@pytest.fixture(scope="session")
def processes() -> Any:
    """Processes that start at once, so that a kill meets the work and not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11's fork server does not take over sys.path before it imports.
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        first = context.Process(target=int)
        first.start()
        first.join()
    return context


@pytest.fixture
def chance() -> random.Random:
    """Its seed is told when the test fails."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def place(tmp_path: Path, broker: Any) -> Place:
    return Place(tmp_path / "home", broker.address, f"shop_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def shop(place: Place, chance: random.Random) -> Iterator[Shop]:
    open_ = Shop(place, chance)
    yield open_
    open_.close()


@dataclass
class Redis:
    """A Redis that can be stopped and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        keeping = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", *where, *keeping], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.02)
        pytest.fail((self.folder / "log").read_text()[-1000:])

    def flush(self) -> None:
        """Lose everything."""
        with redis_library.Redis.from_url(self.url) as client:
            client.flushall()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def redis(tmp_path: Path, free_port: int) -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    (tmp_path / "redis").mkdir()
    running = Redis(tmp_path / "redis", free_port)
    running.start()
    yield running
    running.stop()
