"""An ingest in a process that tells at which step it is, and can kill itself at one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from shop import Place, backfill_all, follow, make_follower, take_in, take_in_again_and_again

from features import backfill as backfilling
from features import consumer
from features import follow as following
from features.feast_online import NewestSqliteOnlineStore
from features.topic_stream import TopicStream

STEP_BYTES = 60


def tell_steps(tell: Callable[[str], None]) -> None:
    """Have this process tell before and after each thing it does that a kill may cut off."""

    def around(owner: Any, name: str, step: Callable[..., str]) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def told(*arguments: Any, **named: Any) -> Any:
            what = step(*arguments)
            tell(f"before {what}")
            result = original(*arguments, **named)
            tell(f"after {what}")
            return result

        setattr(owner, name, told)

    around(SqlCatalog, "commit_table", lambda _, table, *__: f"the commit of {_kind(table.name()[-1])}")
    around(NewestSqliteOnlineStore, "write_numbers", lambda *_: "the online write")
    around(backfilling, "write_files", lambda *_: "writing files")
    around(TopicStream, "take", lambda *_: "decoding")
    around(consumer, "poll", lambda *_: "reading")
    around(following, "poll", lambda *_: "reading")


def _kind(table: str) -> str:
    return next((kind for kind in ("features", "dead_letters") if table.startswith(kind)), "events")


def ingest_and_tell(place: Place, mode: str, file: Path) -> None:
    """Ingest without an end; the file holds the step."""
    told = os.open(file, os.O_RDWR | os.O_CREAT)
    tell_steps(lambda step: os.pwrite(told, step.encode().ljust(STEP_BYTES), 0))
    (follow if mode == "follow" else take_in_again_and_again)(place)


def ingest_until(place: Place, mode: str, step: str, ready: Any) -> None:
    """Ingest, and be killed at that step; a follower, once it follows."""
    armed = mode != "follow"

    def die_at(reached: str) -> None:
        if armed and reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def now_it_follows(_: object) -> None:
        nonlocal armed
        armed = True
        ready.set()

    tell_steps(die_at)
    if mode == "follow":
        make_follower(place, now_it_follows).run()
    else:
        take_in(place)


def backfill_until(place: Place, step: str, times: int) -> None:
    """Build everything anew, and be killed at that step, when it is reached for the so many-th time."""
    reached = 0

    def die_at(now: str) -> None:
        nonlocal reached
        reached += now == step
        if reached == times:
            os.kill(os.getpid(), signal.SIGKILL)

    tell_steps(die_at)
    backfill_all(place)


@contextmanager
def process_of(processes: Any, target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process that is gone when the block ends."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
