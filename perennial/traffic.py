"""Live requests to the scoring service, so that a canary has something to be judged on.

`python -m perennial.traffic PIPELINE --url URL --report FILE` reads lines of a date and a rate, such as `2013-03-01 50`,
from standard input, and asks for predictions of that day's scored events, over and over, that many times a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from features.events import encode_json
from perennial.settings import settings
from perennial.wording import counted
from pipelines.spec import PipelineSpec, add_pipelines_dir, load_pipeline

DAY = timedelta(days=1)


def day_requests(spec: PipelineSpec, day: datetime) -> list[bytes]:
    """A request body for each scored event of a day."""
    event = spec.event(spec.scored.topic)
    return [b'{"events": [%s]}' % value for value in encode_json(spec.replay(day, day + DAY)[event.topic], event)]


class Traffic:
    """One client that keeps a steady rate and counts the answers."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self.wanted: queue.Queue[tuple[list[bytes], float]] = queue.Queue()
        self.answers: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.stopped = threading.Event()

    def send(self, path: str) -> None:
        """Ask until stopped; what is asked and how often changes as it is wanted."""
        bodies: Iterator[bytes] | None = None
        interval_s, due = 0.0, time.monotonic()
        while not self.stopped.is_set():
            with suppress(queue.Empty):
                wanted, rate_per_s = self.wanted.get(block=bodies is None, timeout=0.2)
                bodies, interval_s = itertools.cycle(wanted), 1 / rate_per_s
            if bodies is None:
                continue
            # A slow answer is not made up for by a burst of more than a second's worth.
            due = max(due + interval_s, time.monotonic() - 1)
            self.stopped.wait(max(due - time.monotonic(), 0))
            self._ask(path, next(bodies))

    def _ask(self, path: str, body: bytes) -> None:
        began = time.perf_counter()
        try:
            answer = self._client.post(path, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return
        self.latencies_ms.append((time.perf_counter() - began) * 1_000)
        self.answers[str(answer.status_code)] += 1
        if answer.is_success:
            self.versions.update(str(p["version"]) for p in answer.json()["predictions"])

    def report(self) -> dict[str, Any]:
        """Requests sent, answers by status, predictions by version, latency in milliseconds."""
        ordered = sorted(self.latencies_ms)
        return {
            "requests": sum(self.answers.values()),
            "answers": dict(self.answers),
            "versions": dict(self.versions),
            "p50_ms": ordered[len(ordered) // 2] if ordered else None,
            "p99_ms": ordered[int(len(ordered) * 0.99)] if ordered else None,
        }


def told(report: Mapping[str, Any]) -> str:
    """A report as a sentence: requests, answers, who predicted, how long it took."""
    if not report["requests"]:
        return "No request was sent."
    answers = ", ".join(
        f"{number:,} {'answered ' if kind.isdigit() else ''}{kind}"
        for kind, number in sorted(report["answers"].items())
    )
    parts = [f"{counted(report['requests'], 'request')}: {answers}"]
    if report["versions"]:
        versions = sorted(report["versions"].items())
        parts.append(", ".join(f"{counted(n, 'prediction')} by version {version}" for version, n in versions))
    if report["p50_ms"] is not None:
        parts.append(f"P50 {report['p50_ms']:.1f} ms, P99 {report['p99_ms']:.1f} ms")
    return "; ".join(parts)


def main() -> int:
    """Run until SIGTERM, SIGINT or the end of standard input; then write the report."""
    parser = argparse.ArgumentParser(description="Live requests to the scoring service.")
    parser.add_argument("pipeline")
    parser.add_argument("--url", required=True)
    parser.add_argument("--report", type=Path, required=True)
    arguments = parser.parse_args()
    if directory := settings().pipelines_dir:
        add_pipelines_dir(directory)
    spec = load_pipeline(arguments.pipeline)
    traffic = Traffic(arguments.url)

    def read_wishes() -> None:
        for line in sys.stdin:
            day, rate_per_s = line.split()
            if bodies := day_requests(spec, datetime.fromisoformat(day).replace(tzinfo=UTC)):
                traffic.wanted.put((bodies, float(rate_per_s)))
        traffic.stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: traffic.stopped.set())
    threading.Thread(target=read_wishes, daemon=True).start()
    traffic.send(f"/v1/{spec.name}/score")
    arguments.report.write_text(json.dumps(traffic.report()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
