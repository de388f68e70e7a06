"""Historical events into Kafka, and by the ingest flow into the lake, in a process of its own, as in production."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime

from perennial.settings import settings
from pipelines.spec import PipelineSpec


def open_intake() -> ProcessPoolExecutor:
    """The process; it is started anew and takes its settings from the environment. Leave the block to end it."""
    # Ctrl-C goes to the whole group of processes; this one ends when its owner does.
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


def take_in(api_url: str, pipeline: str, start: datetime, end: datetime, broken_records: int) -> int:
    """Produce the events of [start, end), then ingest them as of the end.

    Args:
        api_url: of the Prefect server that keeps the run.
        pipeline: whose events.
        start: first instant (UTC).
        end: first instant that is left out.
        broken_records: records that cannot be read, sent after the events.

    Returns:
        Records produced, the broken ones included.
    """
    from flows.context import open_context
    from flows.ingest import ingest
    from flows.runs import one_client

    async def run() -> None:
        async with one_client(api_url):
            await ingest(pipeline, end)

    spec = open_context(pipeline).spec
    produced = produce(spec, start, end, broken_records)
    asyncio.run(run())
    return produced


def produce(spec: PipelineSpec, start: datetime, end: datetime, broken_records: int) -> int:
    """Produce the events of [start, end) and some broken records to Kafka; how many there were."""
    from features.consumer import open_producer
    from features.replay import replay

    counts = replay(settings(), spec, start, end)
    if broken_records:
        with open_producer(settings()) as producer:
            for number in range(broken_records):
                producer.send(spec.scored.topic, value=b'{"cut off in the middle": %d, "' % number)
    return sum(counts.values()) + broken_records
