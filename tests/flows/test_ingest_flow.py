"""The flows of the stream on a real Prefect server: what a run leaves for a person, and when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.testing.utilities import prefect_test_harness

from features.arrival import Counts
from features.backfill import backfill
from features.broker import ensure_topics
from features.check_log import last_check
from features.ingest import TopicIngest, ViewRefresh
from features.lake import Lake
from features.metrics import StreamState
from features.online_check import check_online
from features.producer import open_producer
from features.store import OnlineWriter, view_table
from flows import check as check_flow
from flows import ingest as ingest_flow
from flows.context import open_context
from perennial.errors import StageError
from perennial.scaffold import init_pipeline
from perennial.settings import settings
from pipelines.spec import PipelineSpec
from validation.verdict import Status

AT = datetime(2024, 1, 4, 12, tzinfo=UTC)
NOW = AT + timedelta(hours=3, minutes=20)


@pytest.fixture(scope="module", autouse=True)
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=90):
        yield


@pytest.fixture
def name(
    request: pytest.FixtureRequest, tmp_path: Path, broker: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A pipeline of this test's own, whose runs find the broker and a Pushgateway that is away."""
    found = f"flow_{abs(hash(request.node.name)) % 10**8}"
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_KAFKA_BOOTSTRAP_SERVERS", broker.address)
    monkeypatch.setenv("PERENNIAL_PIPELINES_DIR", str(tmp_path / "pipelines"))
    monkeypatch.setenv("PERENNIAL_PUSHGATEWAY_URL", f"http://127.0.0.1:{free_port}")
    init_pipeline(found, tmp_path / "pipelines")
    settings.cache_clear()
    open_context.cache_clear()
    yield found
    settings.cache_clear()
    open_context.cache_clear()


def artifacts(key: str) -> list[Artifact]:
    async def read() -> list[Artifact]:
        async with get_client() as client:
            return await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

    return asyncio.run(read())


def view(name: str, minutes: float) -> bytes:
    at = (AT + timedelta(minutes=minutes)).isoformat()
    return orjson.dumps({"view_id": name, "event_timestamp": at, "customer_id": "c1", "duration_s": 1.0})


def rows(markdown: str) -> dict[str, list[str]]:
    """Cells of the tables by their first one."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_an_ingest_run_leaves_its_numbers_and_a_pushgateway_that_is_away_fails_nothing(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = open_context(name).spec
    event = next(e for e in spec.events if "duration_s" in e.schema_)
    ensure_topics(settings(), [event.topic])
    with open_producer(settings()) as producer:
        for value in (view("a", 0), view("b", 120), view("late", 60), b"{", view("b", 120)):
            producer.send(event.topic, key=b"k", value=value)
    summary = asyncio.run(ingest_flow.ingest(name, NOW))
    assert (summary.ingested, summary.dead_lettered) == (4, 1)
    (warning,) = summary.warnings
    assert "metrics were not pushed" in warning
    assert warning in caplog.text
    (artifact,) = artifacts(f"ingest-{name.replace('_', '-')}")
    found = rows(str(artifact.data))
    assert found[event.topic] == ["4", "1 (20.00%)", "1 (25.00%)", "0", "1 (25.00%)", "0", "2024-01-04 14:00:00"]
    assert found[spec.scored.topic] == ["0", "0", "0", "0", "0", "0", "-"]
    (of_view,) = (v.name for v in spec.views if v.topic == event.topic)
    assert found[of_view][1:] == ["1", "2024-01-04 14:00:00", "1:20:00"]
    told = (tmp_path / "metrics" / f"{name}.prom").read_text()
    assert f'perennial_events_total{{pipeline="{name}",topic="{event.topic}"}} 4.0' in told
    assert f'perennial_feature_freshness_seconds{{pipeline="{name}",view="{of_view}"}} 4800.0' in told


def test_an_ingest_run_tells_which_view_wants_a_backfill(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERENNIAL_PUSHGATEWAY_URL")
    settings.cache_clear()
    spec = open_context(name).spec
    event = next(e for e in spec.events if "duration_s" in e.schema_)
    of_view = next(v for v in spec.views if v.topic == event.topic)
    ensure_topics(settings(), [event.topic])

    def run(value: bytes) -> tuple[str, ...]:
        with open_producer(settings()) as producer:
            producer.send(event.topic, key=b"k", value=value)
        return asyncio.run(ingest_flow.ingest(name, NOW)).warnings

    assert run(view("a", 0)) == ()
    shorter = tuple(a.model_copy(update={"window_s": 60}) for a in of_view.aggregates)
    changed = of_view.model_copy(update={"aggregates": shorter})
    others = tuple(v for v in spec.views if v.name != of_view.name)
    context = replace(open_context(name), spec=spec.model_copy(update={"views": (changed, *others)}))
    monkeypatch.setattr(ingest_flow, "open_context", lambda _: context)
    for number in range(2):
        (warning,) = run(view(f"b{number}", number))
        assert of_view.name in warning
        assert f"`perennial features backfill {name} --view {of_view.name}`" in warning
    backfill(context.settings, context.lake, context.spec, changed)
    assert run(view("c", 3)) == ()


def test_a_run_is_described_as_it_was() -> None:
    counts = Counts(ingested=1_995, dead_lettered=5, late=30, too_late=10, duplicates=2)
    summary = ingest_flow.IngestSummary((TopicIngest("a.b.v1", counts, 1_234, NOW),), (ViewRefresh("v", 1_500, 40),))
    # The newest event is a little ahead of the clock.
    text = ingest_flow.describe(summary, StreamState("shop", (), {"v": NOW + timedelta(seconds=9)}, None), NOW)
    found = rows(text)
    assert found["a.b.v1"] == [
        "1,995",
        "5 (0.25%)",
        "20 (1.00%)",
        "10 (0.50%)",
        "2 (0.10%)",
        "1,234",
        "2024-01-04 15:20:00",
    ]
    assert found["v"] == ["1,500", "40", "2024-01-04 15:20:09", "0:00:00"]


def feature_rows(spec: PipelineSpec, keys: list[str]) -> pl.DataFrame:
    (one, *_) = spec.views
    times = {c: pl.lit(AT).cast(pl.Datetime("us", "UTC")) for c in ("event_timestamp", "created_timestamp")}
    return pl.DataFrame({one.entity: keys}).with_columns(**times, **{a.name: pl.lit(1.0) for a in one.aggregates})


def test_a_check_fails_its_run_when_online_is_not_offline_and_its_numbers_are_kept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_flow, "check_online", partial(check_online, again_after_s=0.0))
    context = open_context(name)
    spec, (one, *_) = context.spec, context.spec.views
    key = f"check-{name.replace('_', '-')}"
    # Before the first event there is nothing to compare: no failure, and no success either.
    assert asyncio.run(check_flow.check(name)).status is Status.INCONCLUSIVE
    both = feature_rows(spec, ["a", "b", "c"])
    context.lake.append(view_table(one), both)
    OnlineWriter(spec, context.settings).write(one, both)
    asyncio.run(check_flow.check(name))
    newest = max(artifacts(key), key=lambda a: a.created)
    assert rows(str(newest.data))[one.name] == ["3", "0", "0", "0", "0", "0"]
    context.lake.append(view_table(one), feature_rows(spec, ["d", "e"]))
    with pytest.raises(StageError, match=f"{one.name}: of 5 keys 2 missing online; `perennial features check {name}`"):
        asyncio.run(check_flow.check(name))
    newest = max(artifacts(key), key=lambda a: a.created)
    assert rows(str(newest.data))[one.name] == ["5", "2", "0", "0", "0", "0"]
    assert "FAIL" in str(newest.data)
    kept = last_check(Lake(settings(), name))
    assert kept is not None
    assert kept.differences[one.name] == {"missing online": 2}
