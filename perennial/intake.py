"""The stream of a story: historical events into Kafka, and by the ingest flow into the lake, in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType

from perennial.addresses import child_environment, given_addresses, local_addresses
from perennial.errors import StageError
from perennial.ports import StackPorts
from perennial.settings import Settings, settings


class Intake:
    """A process that produces and ingests what it is asked to, one after the other; leave the block to end it.

    What is still asked for then is given up. The block may lie in another one of the same intake; the inner one's end counts.

    Args:
        configured: the settings of the stack.
        ports: where the stack listens, or will.
        pipeline: whose events.
    """

    def __init__(self, configured: Settings, ports: StackPorts, pipeline: str) -> None:
        given = given_addresses(configured)
        addresses = {**local_addresses(ports), **given}
        environment = child_environment(configured, addresses, own_prefect="prefect_api_url" not in given)
        self._pipeline, self._api_url = pipeline, addresses["prefect_api_url"]
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(), environment)
        )
        self._number = self._pool.submit(os.getpid)
        self._produced: dict[datetime, Future[int]] = {}
        self._calls: set[Future[int] | Future[None]] = set()
        self._ended = False

    def produce(self, start: datetime, end: datetime, broken_records: int = 0) -> None:
        """Have the events of [start, end) produced, and then some records that cannot be read; does not wait.

        Raises:
            StageError: the process has ended by itself.
        """
        arguments = self._pipeline, start, end, broken_records
        with _an_end_told():
            self._produced[end] = self._pool.submit(_produce, *arguments)
        self._remember(self._produced[end])

    async def take_in(self, start: datetime, end: datetime, broken_records: int = 0) -> int:
        """Produce the events of [start, end) unless that was begun before, then ingest as of `end`.

        Returns:
            Records produced, the broken ones included.

        Raises:
            StageError: the process has ended by itself.
        """
        if end not in self._produced:
            self.produce(start, end, broken_records)
        with _an_end_told():
            ingested = self._pool.submit(_ingest, self._pipeline, self._api_url, end)
            self._remember(ingested)
            produced = await asyncio.wrap_future(self._produced.pop(end))
            await asyncio.wrap_future(ingested)
        return produced

    def _remember(self, call: Future[int] | Future[None]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._ended:
            return
        self._ended = True
        if error is not None or self._calls:
            # The shutdown waits for the call that runs, which takes minutes; and SIGTERM is Prefect's while a flow runs.
            with suppress(ProcessLookupError, BrokenProcessPool):
                os.kill(self._number.result(), signal.SIGKILL)
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _an_end_told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise StageError(
            "the process that produces and ingests ended by itself, as the system makes one end that takes more memory "
            "than there is; make room, then run the same command again"
        ) from error


def _begin(owner: int, environment: Mapping[str, str]) -> None:
    # The queue of calls does not end with the owner: killed, it would leave this process waiting for ever.
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    # Ctrl-C goes to the whole group of processes; the owner's block ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    settings.cache_clear()
    import flows.ingest  # noqa: F401 - takes seconds, in which the stack starts


def _end_with(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(1)
    os._exit(1)


def _produce(pipeline: str, start: datetime, end: datetime, broken_records: int) -> int:
    from features.producer import open_producer
    from features.replay import replay
    from flows.context import open_context

    context = open_context(pipeline)
    counts = replay(context.settings, context.spec, start, end)
    if broken_records:
        with open_producer(context.settings) as producer:
            for number in range(broken_records):
                producer.send(context.spec.scored.topic, value=b'{"cut off in the middle": %d, "' % number)
    return sum(counts.values()) + broken_records


def _ingest(pipeline: str, api_url: str, as_of: datetime) -> None:
    from flows.ingest import ingest
    from flows.runs import one_client

    async def run() -> None:
        async with one_client(api_url):
            await ingest(pipeline, as_of)

    asyncio.run(run())
