"""Metrics of the stream: right over runs and restarts, in Prometheus' words, and told by file, by push and by scrape."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from features.arrival import Counts
from features.check_log import LastCheck, last_check, record_check
from features.ingest import ingest_topics, refresh_view
from features.lake import Lake
from features.metrics import StreamMetrics, StreamState, TopicState, observe, report, serve
from features.online_check import ViewCheck
from perennial.errors import UsageError
from perennial.settings import Settings
from pipelines.spec import EventSpec, PipelineSpec

NOW = datetime(2024, 1, 5, tzinfo=UTC)
AT = datetime(2024, 1, 4, 12, tzinfo=UTC)
STARTS_WITHIN_S = 20
Produce = Callable[[str, Mapping[int, Any]], None]
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def viewed(spec: PipelineSpec, make_topic: Callable[[str, int], None]) -> EventSpec:
    event = next(e for e in spec.events if "duration_s" in e.schema_)
    make_topic(event.topic, 1)
    return event


def view(name: str, hours: float) -> bytes:
    at = (AT + timedelta(hours=hours)).isoformat()
    return orjson.dumps({"view_id": name, "event_timestamp": at, "customer_id": "c1", "duration_s": 1.0})


def run_once(settings: Settings, spec: PipelineSpec) -> StreamState:
    """A micro-batch as a process of its own would do it: nothing is remembered but the lake."""
    lake = Lake(settings, spec.name)
    topics = ingest_topics(settings, lake, spec.events, NOW)
    for one in spec.views:
        refresh_view(settings, lake, spec, one)
    return observe(lake, spec, {t.topic: t.lag_rows for t in topics})


def values(text: str) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(found: Values, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def rendered(state: StreamState, now: datetime = NOW) -> str:
    return generate_latest(StreamMetrics(state, lambda: now).registry).decode()


def test_counters_go_on_over_runs_that_share_nothing_but_the_lake(
    kafka_settings: Settings, spec: PipelineSpec, viewed: EventSpec, produce: Produce
) -> None:
    of = {"pipeline": spec.name, "topic": viewed.topic}
    produce(viewed.topic, {0: [view("a", 0), view("b", 2), view("late", 1), b"{", view("b", 2)]})
    first = values(rendered(run_once(kafka_settings, spec)))
    produce(viewed.topic, {0: [view("too late", -23), view("c", 3), b"[]"]})
    run_once(kafka_settings, spec)
    found = values(rendered(run_once(kafka_settings, spec)))  # a run with nothing to do changes nothing
    expected = {"events": (4, 6), "dead_letters": (1, 2), "duplicate_events": (1, 1)}
    for name, (before, after) in expected.items():
        assert at(first, f"perennial_{name}_total", **of) == before
        assert at(found, f"perennial_{name}_total", **of) == after
    assert at(first, "perennial_late_events_total", outcome="corrected", **of) == 1
    assert at(first, "perennial_late_events_total", outcome="too_late", **of) == 0
    assert at(found, "perennial_late_events_total", outcome="corrected", **of) == 1
    assert at(found, "perennial_late_events_total", outcome="too_late", **of) == 1
    assert at(found, "perennial_consumer_lag_records", **of) == 0
    newest = AT + timedelta(hours=3)
    assert at(found, "perennial_newest_event_timestamp_seconds", **of) == newest.timestamp()
    (name,) = (v.name for v in spec.views if v.topic == viewed.topic)
    by_view = {"pipeline": spec.name, "view": name}
    assert at(found, "perennial_newest_feature_timestamp_seconds", **by_view) == newest.timestamp()
    assert at(found, "perennial_feature_freshness_seconds", **by_view) == 9 * 3_600
    # What nobody knows is left out, not zero.
    empty = {"pipeline": spec.name, "topic": spec.scored.topic}
    assert at(found, "perennial_events_total", **empty) == 0
    assert at(found, "perennial_newest_event_timestamp_seconds", **empty) is None
    unasked = values(rendered(observe(Lake(kafka_settings, spec.name), spec, {})))
    assert at(unasked, "perennial_consumer_lag_records", **of) is None


def test_the_newest_event_of_a_table_is_found_in_any_of_its_files(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "shop")
    assert lake.newest("rows") is None
    days = [3, 40, 17]
    for number, day in enumerate(days):
        times = [AT + timedelta(days=day, microseconds=k) for k in range(number + 2)]
        frame = pl.DataFrame(
            {"event_timestamp": times, "x": 1}, schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")}
        )
        lake.append("rows", frame)
    lake.append("rows", frame.clear())
    newest = AT + timedelta(days=40, microseconds=2)
    assert lake.read("rows")["event_timestamp"].max() == newest
    assert lake.newest("rows") == newest
    assert lake.newest("rows", since=newest) == newest
    assert lake.newest("rows", since=newest + timedelta(days=2)) is None
    lake.append("none", frame.clear())
    assert lake.newest("none") is None


def state_of(check: LastCheck | None = None, pipeline: str = "shop") -> StreamState:
    counts = Counts(ingested=1_204, dead_lettered=3, late=9, too_late=2, duplicates=4)
    topics = (TopicState("shop.ordered.v1", counts, AT, 17), TopicState("shop.viewed.v1", Counts(), None, None))
    return StreamState(pipeline, topics, {"orders": AT, "views": None}, check)


def test_the_last_check_of_online_is_a_metric_and_nothing_checked_is_not_no_difference(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "shop")
    assert last_check(lake) is None
    assert "online" not in rendered(state_of())
    record_check(lake, [ViewCheck("orders", 5, {"missing online": 5}), ViewCheck("views", 2)], AT - timedelta(hours=1))
    record_check(lake, [ViewCheck("orders", 7, {"older online": 2, "value differs": 1}), ViewCheck("views", 0)], AT)
    found = values(rendered(state_of(last_check(Lake(Settings(home=tmp_path), "shop")))))
    kinds = {
        dict(labels)["kind"]: value
        for (name, labels), value in found.items()
        if name == "perennial_online_differences" and ("view", "orders") in labels
    }
    assert kinds == {"missing_online": 0, "older_online": 2, "newer_online": 0, "value_differs": 1, "not_offline": 0}
    assert at(found, "perennial_online_checked_keys", pipeline="shop", view="views") == 0
    assert not [1 for name, labels in found if name == "perennial_online_differences" and ("view", "views") in labels]
    assert at(found, "perennial_online_check_timestamp_seconds", pipeline="shop") == AT.timestamp()
    assert lake.rows("online_checks") == 4


def test_the_names_and_words_are_those_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    check = LastCheck(AT, {"orders": 7}, {"orders": {"older online": 2}})
    assert report(Settings(home=tmp_path), state_of(check), NOW) == ()
    text = (tmp_path / "metrics" / "shop.prom").read_bytes()
    judged = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, b"", b"")


def test_the_file_is_replaced_whole_and_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for clock in (NOW, NOW + timedelta(hours=1)):
        assert report(settings, state_of(), clock) == ()
        found = values((tmp_path / "metrics" / "shop.prom").read_text())
        fresh = at(found, "perennial_feature_freshness_seconds", pipeline="shop", view="orders")
        assert fresh == (clock - AT).total_seconds()
    assert [file.name for file in (tmp_path / "metrics").iterdir()] == ["shop.prom"]
    blocked = Settings(home=tmp_path / "blocked")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "metrics").write_text("in the way")
    (wrong,) = report(blocked, state_of(), NOW)
    assert "metrics were not written to" in wrong


def test_each_run_takes_the_place_of_the_one_before_it_in_a_pushgateway(tmp_path: Path, pushgateway: str) -> None:
    settings = Settings(home=tmp_path, pushgateway_url=pushgateway)
    check = LastCheck(AT, {"orders": 7}, {"orders": {"older online": 2}})
    assert report(settings, state_of(check), NOW) == ()
    assert report(settings, state_of(pipeline="flights"), NOW) == ()
    assert report(settings, state_of(), NOW) == ()
    found = values(httpx.get(f"{pushgateway}/metrics").text)
    for pipeline in ("shop", "flights"):
        of = {"job": "perennial", "instance": "", "pipeline": pipeline}
        assert at(found, "perennial_events_total", topic="shop.ordered.v1", **of) == 1_204
        assert at(found, "perennial_consumer_lag_records", topic="shop.ordered.v1", **of) == 17
        assert at(found, "push_failure_time_seconds", **of) == 0
    assert not [name for name, _ in found if name == "perennial_online_differences"]


@pytest.mark.parametrize("url", ["http://ann:secret@127.0.0.1:{port}", "127.0.0.1:{port}", "http://ann:secret@[::1"])
def test_a_pushgateway_that_is_away_is_told_without_its_password(tmp_path: Path, free_port: int, url: str) -> None:
    settings = Settings(home=tmp_path, pushgateway_url=url.format(port=free_port))
    (wrong,) = report(settings, state_of(), NOW)
    assert "metrics were not pushed to" in wrong
    assert "PERENNIAL_PUSHGATEWAY_URL" in wrong
    assert "secret" not in wrong
    assert (tmp_path / "metrics" / "shop.prom").exists()


def test_a_pushgateway_behind_a_password_is_given_it(tmp_path: Path, free_port: int) -> None:
    settings = Settings(home=tmp_path, pushgateway_url=f"http://ann:s%40cret@127.0.0.1:{free_port}/base")
    with socket.create_server(("127.0.0.1", free_port)) as server:
        asker = subprocess.Popen(
            [sys.executable, "-c", ASK, settings.pushgateway_url, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        server.settimeout(STARTS_WITHIN_S)
        connection, _ = server.accept()
        with connection:
            head = connection.recv(65_536).decode()
            connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        told, _ = asker.communicate(timeout=STARTS_WITHIN_S)
    assert head.startswith("PUT /base/metrics/job/perennial/pipeline/shop ")
    assert "Authorization: Basic YW5uOnNAY3JldA==" in head  # ann:s@cret
    assert "401" in told
    assert "cret" not in told


ASK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from features.metrics import StreamState, report
from perennial.settings import Settings
settings = Settings(home=Path(sys.argv[2]), pushgateway_url=sys.argv[1])
print(report(settings, StreamState("shop", (), {}, None), datetime.now(UTC)))
"""


def test_a_scrape_sees_the_newest_state_and_the_clock_of_its_moment() -> None:
    clock = [NOW]
    metrics = StreamMetrics(state_of(), lambda: clock[0])
    address, end = serve(metrics, "127.0.0.1", 0)
    try:
        of = {"pipeline": "shop", "view": "orders"}
        assert at(values(httpx.get(address).text), "perennial_feature_freshness_seconds", **of) == 43_200
        clock[0] += timedelta(seconds=5)
        assert at(values(httpx.get(address).text), "perennial_feature_freshness_seconds", **of) == 43_205
        metrics.state = StreamState("shop", (), {"orders": clock[0]}, None)
        assert at(values(httpx.get(address).text), "perennial_feature_freshness_seconds", **of) == 0
        with pytest.raises(UsageError, match=r"--metrics-port \d+ cannot be had \(.*\); choose a free one"):
            serve(metrics, "127.0.0.1", int(address.split(":")[2].split("/")[0]))
    finally:
        end()
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.parametrize(("where", "host"), [([], "127.0.0.1"), (["--metrics-host", "0.0.0.0"], "0.0.0.0")])
def test_the_follower_answers_prometheus_while_it_follows(
    kafka_settings: Settings,
    spec: PipelineSpec,
    viewed: EventSpec,
    produce: Produce,
    tmp_path: Path,
    where: list[str],
    host: str,
) -> None:
    produce(viewed.topic, {0: [view("a", 0)]})
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PERENNIAL_HOME": str(tmp_path),
        "PERENNIAL_PIPELINES_DIR": str(tmp_path / "pipelines"),
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": kafka_settings.kafka_bootstrap_servers,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "perennial.cli", "ingest", spec.name, "--follow", "--metrics-port", "0"]
    follower = subprocess.Popen(
        [*command, *where, "--every-s", "0.2"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        line = follower.stdout.readline()
        assert line.startswith(f"Metrics are at http://{host}:"), line + (follower.stderr.read() if not line else "")
        address = line.split()[-1].replace(host, "127.0.0.1")
        of = {"pipeline": spec.name, "topic": viewed.topic}

        def until(events: int) -> Values:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                found = values(httpx.get(address).text)
                if at(found, "perennial_events_total", **of) == events:
                    return found
                time.sleep(0.05)
            pytest.fail(f"{events} events were not counted: {found}")

        until(1)
        produce(viewed.topic, {0: [view("b", 1), view("late", 0.5), b"{"]})
        found = until(3)
        assert at(found, "perennial_late_events_total", outcome="corrected", **of) == 1
        assert at(found, "perennial_dead_letters_total", **of) == 1
        (name,) = (v.name for v in spec.views if v.topic == viewed.topic)
        newest = at(found, "perennial_newest_feature_timestamp_seconds", pipeline=spec.name, view=name)
        assert newest == (AT + timedelta(hours=1)).timestamp()
        follower.send_signal(signal.SIGINT)
        told, wrong = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == 0, wrong
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 2 events, 1 dead letter, 1 late; ", told, re.MULTILINE)
    assert told.endswith("Everything that was read is in the lake.\n")
