"""A stage of a flow: a plain function, run as a Prefect task in a thread of its own.

In a thread, because the flow's event loop must stay free: for its heartbeat, for a cancellation, and for flows beside it.
Not as Prefect's synchronous task, which makes a client and an SSL context of its own each time.

A stage that has begun runs to its end even if its run is cancelled, and the process waits for it: a thread cannot be
stopped. No further stage begins. Only the canary's judge, which waits for minutes, stops at once (flows/rollout.py). A
worker kills a cancelled run's process after 30 s, as any kill may come: what a stage had not committed is done anew.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun

from perennial.errors import ConflictError, PerennialError
from validation.verdict import Status, Verdict

P = ParamSpec("P")
R = TypeVar("R")
MOST_CHARACTERS = 300


def stage(
    *, name: str | None = None, again_after_conflict: int = 0
) -> Callable[[Callable[P, R]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a function a stage; the flow awaits it.

    Args:
        name: of its runs, with the function's arguments in braces; None = the function's name.
        again_after_conflict: how often it is run anew because another writer committed first; it then reads that
            writer's positions and goes on from there. Nothing else is tried again.
    """

    def make(function: Callable[P, R]) -> Task[P, Coroutine[Any, Any, R]]:
        @task(
            task_run_name=name,
            cache_policy=NO_CACHE,
            retries=again_after_conflict,
            retry_condition_fn=_came_second,
        )
        @functools.wraps(function)
        async def in_a_thread(*args: P.args, **kwargs: P.kwargs) -> R:
            return await asyncio.to_thread(function, *args, **kwargs)

        return in_a_thread

    return make


async def attempt(what: str, doing: Awaitable[R]) -> R | None:
    """What comes of something that must not keep a run from its work, such as telling people; None when it fails.

    Args:
        what: fails, for the warning in the run's log, such as "the drift report".
        doing: is awaited.
    """
    try:
        return await doing
    except Exception as error:  # noqa: BLE001 - whatever a drawing library, a store or a mail server raises
        told = f"{error}".rstrip(". ") or type(error).__name__
        get_run_logger().warning("%s failed: %s. The run goes on", what, told, exc_info=True)
        return None


async def judged(doing: Awaitable[R], verdict_of: Callable[[R], Verdict]) -> tuple[R | None, Verdict]:
    """What a check found, and its verdict; one that raises is told of as any other finding is, so it is an ERROR.

    Args:
        doing: is awaited.
        verdict_of: what it found -> the verdict.
    """
    try:
        found = await doing
    except CancelledRun:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a file that is damaged or a pipeline's own code raises
        get_run_logger().warning("a check could not run; the others do", exc_info=True)
        return None, Verdict(Status.ERROR, _sentence(error))
    return found, verdict_of(found)


def _sentence(error: Exception) -> str:
    if isinstance(error, PerennialError):
        return error.what.rstrip(". ")
    first = f"{error}".strip().partition("\n")[0][:MOST_CHARACTERS].rstrip(". ")
    return f"it ended in {type(error).__name__}" + (f": {first}" if first else "")


def _came_second(_: object, __: object, state: State[Any]) -> bool:
    return isinstance(state.data, ConflictError)
