"""The stream of a story: historical events into Kafka, and by the ingest flow into the lake, in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime
from types import TracebackType

from perennial.addresses import child_environment, given_addresses, local_addresses
from perennial.ports import StackPorts
from perennial.settings import Settings, settings


class Intake:
    """A process that produces and ingests what it is asked to, one after the other; leave the block to end it.

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
            1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(environment,)
        )
        self._produced: dict[datetime, Future[int]] = {}

    def produce(self, start: datetime, end: datetime, broken_records: int = 0) -> None:
        """Have the events of [start, end) produced, and then some records that cannot be read; does not wait."""
        arguments = self._pipeline, start, end, broken_records
        self._produced[end] = self._pool.submit(_produce, *arguments)

    async def take_in(self, start: datetime, end: datetime, broken_records: int = 0) -> int:
        """Produce the events of [start, end) unless that was begun before, then ingest as of `end`.

        Returns:
            Records produced, the broken ones included.
        """
        if end not in self._produced:
            self.produce(start, end, broken_records)
        ingested = self._pool.submit(_ingest, self._pipeline, self._api_url, end)
        produced = await asyncio.wrap_future(self._produced.pop(end))
        await asyncio.wrap_future(ingested)
        return produced

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _begin(environment: Mapping[str, str]) -> None:
    # Ctrl-C goes to the whole group of processes; this one ends when its owner does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    settings.cache_clear()
    import flows.ingest  # noqa: F401 - takes seconds, in which the stack starts


def _produce(pipeline: str, start: datetime, end: datetime, broken_records: int) -> int:
    from features.consumer import open_producer
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
