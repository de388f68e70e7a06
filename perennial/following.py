"""`perennial ingest PIPELINE --follow`: the stream without an end, and what it says in the terminal."""

from __future__ import annotations

import logging
import signal

from features.follow import Committed, Follower
from flows.context import open_context


def follow_pipeline(pipeline: str, every_s: float, max_rows: int) -> None:
    """Follow a pipeline's topics until SIGINT or SIGTERM; what was read by then is committed.

    Args:
        pipeline: name of the pipeline.
        every_s: seconds between two commits to the lake.
        max_rows: records after which a commit comes earlier.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    context = open_context(pipeline)
    follower = Follower(context.settings, context.lake, context.spec, every_s, max_rows, _tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: follower.stop())
    print(f"Following {', '.join(event.topic for event in context.spec.events)}. Ctrl-C ends it.", flush=True)
    follower.run()
    print("Everything that was read is in the lake.")


def _tell(committed: Committed) -> None:
    for topic in committed.topics:
        if topic.ingested or topic.dead_lettered:
            print(
                f"{topic.topic}: {topic.ingested} events, {topic.dead_lettered} dead letters, {topic.lag_rows} behind",
                flush=True,
            )
