"""`perennial ingest PIPELINE --follow`: the stream without an end, what it says in the terminal and to Prometheus."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

from features.arrival import Counts
from features.follow import Committed, Follower
from features.ingest import TopicIngest
from features.metrics import StreamMetrics, observe, serve
from flows.context import Context, open_context
from perennial.errors import PerennialError
from perennial.wording import MOMENT, at, counted

LOG = logging.getLogger(__name__)


def follow_pipeline(pipeline: str, every_s: float, max_rows: int, metrics_port: int | None, metrics_host: str) -> None:
    """Follow a pipeline's topics until SIGINT or SIGTERM; what was read by then is committed.

    Args:
        pipeline: name of the pipeline.
        every_s: seconds between two commits to the lake.
        max_rows: records after which a commit comes earlier.
        metrics_port: where Prometheus is answered, 0 for any free port; None = nowhere.
        metrics_host: address of this machine at which it is.
    """
    _log_as_printed()
    context = open_context(pipeline)
    with ExitStack() as stack:
        update = _serve_metrics(context, metrics_host, metrics_port, stack) if metrics_port is not None else None

        def on_commit(committed: Committed) -> None:
            if line := told(committed):
                print(f"{at(datetime.now(UTC))} {line}", flush=True)
            if update:
                update(committed)

        follower = Follower(context.settings, context.lake, context.spec, every_s, max_rows, on_commit)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: follower.stop())
        print(f"Following {', '.join(event.topic for event in context.spec.events)}. Ctrl-C ends it.", flush=True)
        follower.run()
    print("Everything that was read is in the lake.")


def _log_as_printed() -> None:
    """Warnings begin with the moment, as the lines of the commits do."""
    handler, form = logging.StreamHandler(), logging.Formatter("%(asctime)s %(message)s", MOMENT)
    form.converter = time.gmtime
    handler.setFormatter(form)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _serve_metrics(context: Context, host: str, port: int, stack: ExitStack) -> Callable[[Committed], None]:
    metrics = StreamMetrics(observe(context.lake, context.spec, {}), lambda: datetime.now(UTC))
    address, end = serve(metrics, host, port)
    stack.callback(end)
    print(f"Metrics are at {address}", flush=True)

    def update(committed: Committed) -> None:
        try:
            lag_rows = {topic.topic: topic.lag_rows for topic in committed.topics}
            metrics.state = observe(context.lake, context.spec, lag_rows)
        except PerennialError as error:  # the stream goes on; it will tell itself if the lake is away
            LOG.warning("metrics are as of the commit before: %s", error.what)

    return update


def told(committed: Committed) -> str:
    """What one commit kept, on a line; empty if nothing."""
    counts = sum((topic.counts for topic in committed.topics), Counts())
    rows = sum(view.rows for view in committed.views)
    if counts == Counts() and not rows:
        return ""
    online_keys, lag_rows = sum(v.online_keys for v in committed.views), sum(t.lag_rows for t in committed.topics)
    return f"{_told(counts, lag_rows)}; {counted(rows, 'feature row')}, {counted(online_keys, 'key')} online"


def told_topic(topic: TopicIngest) -> str:
    """What was taken from a topic, on a line."""
    return f"{topic.topic}: {_told(topic.counts, topic.lag_rows)}"


def _told(counts: Counts, lag_rows: int) -> str:
    in_time = counts.late - counts.too_late
    parts = [counted(counts.ingested, "event"), counted(counts.dead_lettered, "dead letter")]
    parts += [f"{in_time:,} late"] if in_time else []
    parts += [f"{counts.too_late:,} too late"] if counts.too_late else []
    parts += [counted(counts.duplicates, "duplicate")] if counts.duplicates else []
    parts += [f"{lag_rows:,} behind"] if lag_rows else []
    return ", ".join(parts)
