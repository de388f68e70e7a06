"""How old an event is when its feature can be read online: `perennial ingest flights --follow`, at 1 k and 10 k events/s.

    python -m benchmarks.freshness [--json] [--seconds 30]

Departures are produced with the clock's time as their event time, at an even rate. A reader of its own looks at the three
origins again and again; an event is visible once its origin's online row has its time or a later one. The limit is the same
path without perennial: an event produced and polled by a client that drops it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.running import broker, quiet, scratch, tell
from perennial.settings import Settings

RATES = (1_000, 10_000)
ORIGINS = ("EWR", "JFK", "LGA")
TOPIC = "flights.departed.v1"
TICK_S = 0.01
WARM_S = 5.0

Micros = npt.NDArray[np.int64]


def produce(settings: Settings, rate: int, seconds: float) -> Micros:
    """Produce at an even rate; (n, 2): the origin's number and the event's time in microseconds."""
    from features.producer import open_producer

    sent: list[tuple[int, int]] = []
    run = time.time_ns()
    value = (
        '{{"flight_id":"{id}","event_timestamp":"{at}Z","carrier":"{carrier}","tail_number":"N{tail}","origin":"{origin}",'
        '"destination":"ATL","departure_delay_min":{delay}}}'
    )
    with open_producer(settings) as producer:
        began, number = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            while number < elapsed * rate:
                micros = time.time_ns() // 1_000
                at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(micros // 10**6))}.{micros % 10**6:06d}"
                which = number % len(ORIGINS)
                record = value.format(
                    id=f"{run}-{number}",
                    at=at,
                    carrier="UADLAAB6"[2 * (number % 4) :][:2],
                    tail=number % 4_000,
                    origin=ORIGINS[which],
                    delay=float(number % 60),
                )
                producer.send(TOPIC, key=ORIGINS[which].encode(), value=record.encode())
                sent.append((which, micros))
                number += 1
            time.sleep(TICK_S / 10)
    return np.array(sent, dtype=np.int64)


def watch_online(settings: Settings, ended: Event, results: Any) -> None:
    """Look at each origin's online row until told; (n, 3): the origin's number, when it was read, what time it had."""
    from features.store import OnlineWriter
    from pipelines.spec import load_pipeline

    spec = load_pipeline("flights")
    view = next(v for v in spec.views if v.name == "origin_traffic")
    store, seen = OnlineWriter(spec, settings), []
    newest = dict.fromkeys(ORIGINS, 0)
    while not ended.is_set():
        found = store.read(view, list(ORIGINS))
        now = time.time_ns() // 1_000
        times = found.get_column("event_timestamp").dt.epoch("us").to_list()
        for origin, at in zip(found.get_column(view.entity).to_list(), times, strict=True):
            if at is not None and at > newest[origin]:
                newest[origin] = at
                seen.append((ORIGINS.index(origin), now, at))
        time.sleep(0.002)
    results.put(np.array(seen, dtype=np.int64).reshape(-1, 3))


def watch_raw(settings: Settings, ended: Event, results: Any) -> None:
    """The same of a client that polls and drops."""
    import orjson

    from features.consumer import open_consumer, poll, start_positions

    seen = []
    with open_consumer(settings) as consumer:
        starts = start_positions(consumer, TOPIC, {})
        consumer.assign(list(starts))
        for tp, end in consumer.end_offsets(list(starts)).items():
            consumer.seek(tp, end)
        while not ended.is_set():
            for fetched in poll(consumer, 100, 5_000).values():
                now = time.time_ns() // 1_000
                last = {}
                for record in fetched[-3:]:
                    document = orjson.loads(record.value)
                    last[document["origin"]] = document["event_timestamp"]
                for origin, at in last.items():
                    seen.append((ORIGINS.index(origin), now, _micros(at)))
    results.put(np.array(seen, dtype=np.int64).reshape(-1, 3))


def _micros(text: str) -> int:
    from datetime import datetime

    return round(datetime.fromisoformat(text).timestamp() * 10**6)


def ages_ms(sent: Micros, seen: Micros) -> npt.NDArray[np.float64]:
    """How old each event was when it was first seen; infinite if it never was. The first seconds are left out."""
    ages = []
    for which in range(len(ORIGINS)):
        times = sent[sent[:, 0] == which, 1]
        times = times[times >= sent[0, 1] + int(WARM_S * 10**6)]
        looks = seen[seen[:, 0] == which]
        first = np.searchsorted(looks[:, 2], times)
        when = np.append(looks[:, 1].astype(float), np.inf)[first]
        ages.append((when - times) / 1_000)
    return np.concatenate(ages)


def measure_rate(settings: Settings, watch: Any, rate: int, seconds: float) -> npt.NDArray[np.float64]:
    """Ages at one rate, with everything warm."""
    context = multiprocessing.get_context("spawn")
    ended, results = context.Event(), context.Queue()
    watcher = context.Process(target=watch, args=(settings, ended, results))
    watcher.start()
    time.sleep(WARM_S)
    sent = produce(settings, rate, seconds)
    time.sleep(10.0)
    ended.set()
    seen = results.get()
    watcher.join()
    reached = len(sent) / seconds
    if reached < 0.95 * rate:
        raise SystemExit(f"the producer came to {reached:.0f} events/s only, not {rate}; nothing was measured")
    return ages_ms(sent, seen)


def measure(root: Path, seconds: float) -> dict[str, float | int]:
    """Every figure."""
    figures: dict[str, float | int] = {"seconds": seconds}
    for rate in RATES:
        with broker(root / f"at-{rate}") as settings:
            from features.broker import ensure_topics
            from pipelines.spec import load_pipeline

            ensure_topics(settings, [event.topic for event in load_pipeline("flights").events])
            raw = measure_rate(settings, watch_raw, rate, 2 * WARM_S)
            environment = {
                **os.environ,
                "PERENNIAL_HOME": str(settings.root),
                "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            }
            follow = [sys.executable, "-m", "perennial.cli", "ingest", "flights", "--follow"]
            with (root / f"follow-{rate}.log").open("wb") as log:
                process = subprocess.Popen(follow, env=environment, stdout=log, stderr=log)
                try:
                    _until_following(root / f"follow-{rate}.log", process)
                    ages = measure_rate(settings, watch_online, rate, seconds)
                finally:
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
        if not np.isfinite(ages).all():
            raise SystemExit(f"{int((~np.isfinite(ages)).sum())} of {len(ages)} events were never seen online")
        for name, some in (("", ages), ("_raw", raw)):
            figures[f"p50_ms_{rate}{name}"] = round(float(np.percentile(some, 50)), 1)
            figures[f"p99_ms_{rate}{name}"] = round(float(np.percentile(some, 99)), 1)
        figures[f"events_{rate}"] = len(ages)
    return figures


def _until_following(log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while "feature rows" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"it does not follow: {log.read_text()[-2_000:]}")
        time.sleep(0.2)


if __name__ == "__main__":
    quiet()
    length = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 30.0
    with scratch() as folder:
        tell(measure(folder, length))
