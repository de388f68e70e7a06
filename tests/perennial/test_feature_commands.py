from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from new_pipeline import spec as spec  # a fixture
from rich.console import Console

from features.ingest import ingest_topics, refresh_view
from features.lake import Lake
from features.lineage import FeatureLineage
from features.online_check import Difference, ViewCheck
from features.replay import replay
from features.store import view_table, write_online
from perennial.feature_commands import check_table, lineage_tables, span, told
from perennial.settings import Settings
from pipelines.spec import FeatureView, PipelineSpec

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def perennial(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "COLUMNS": "80",
        "HOME": str(home),
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_PIPELINES_DIR": str(home / "pipelines"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    whole = [sys.executable, "-m", "perennial.cli", *command]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


def rows_of(view: FeatureView, keys: list[str], value: float) -> pl.DataFrame:
    times = {name: pl.lit(T0).cast(pl.Datetime("us", "UTC")) for name in ("event_timestamp", "created_timestamp")}
    values = {a.name: pl.lit(value) for a in view.aggregates}
    return pl.DataFrame({view.entity: keys}).with_columns(**times, **values)


def test_check_says_what_differs_by_its_exit_status_and_in_words(tmp_path: Path, spec: PipelineSpec) -> None:
    settings = Settings(home=tmp_path)
    nothing = perennial(tmp_path, "features", "check", spec.name)
    assert nothing.returncode == 1
    assert "INCONCLUSIVE: " in nothing.stdout
    lake = Lake(settings, spec.name)
    for view in spec.views:
        rows = rows_of(view, ["a", "b", "c"], 1.0)
        lake.append(view_table(view), rows)
        write_online(spec, settings, view, rows)
    equal = perennial(tmp_path, "features", "check", spec.name)
    assert equal.returncode == 0, equal.stderr
    assert f"{spec.views[0].name}: 3 keys, online the same as offline" in equal.stdout
    view = spec.views[0]
    lake.append(view_table(view), rows_of(view, ["d"], 1.0))
    differing = perennial(tmp_path, "features", "check", spec.name)
    assert differing.returncode == 1
    assert f"FAIL: {view.name}: of 4 keys 1 missing online" in " ".join(differing.stdout.split())
    assert "'d': missing online, offline 2026-03-01 12:00:00, online nothing" in " ".join(differing.stdout.split())


def test_materialize_writes_what_check_finds_missing_and_check_names_it(tmp_path: Path, spec: PipelineSpec) -> None:
    settings = Settings(home=tmp_path)
    nothing = perennial(tmp_path, "features", "materialize", spec.name)
    assert nothing.returncode == 2
    for view in spec.views:
        assert f"{view.name}: nothing in the lake" in nothing.stdout
    assert f"run `perennial ingest {spec.name}` first" in nothing.stderr
    mend = f"`perennial features materialize {spec.name}`"
    lake, (view, *_) = Lake(settings, spec.name), spec.views
    for each in spec.views:
        lake.append(view_table(each), rows_of(each, ["a", "b", "c"], 1.0))
    newer = rows_of(view, ["c"], 2.0).with_columns(pl.col("event_timestamp") + timedelta(seconds=1))
    write_online(spec, settings, view, newer)
    missing = perennial(tmp_path, "features", "check", spec.name)
    assert missing.returncode == 1
    assert mend in " ".join(missing.stdout.split())
    done = perennial(tmp_path, "features", "materialize", spec.name)
    assert done.returncode == 0, done.stderr
    assert f"{view.name}: 2 keys written, 1 newer online already\n" in done.stdout
    lake.append(view_table(view), newer)
    equal = perennial(tmp_path, "features", "check", spec.name)
    assert equal.returncode == 0, equal.stdout
    assert mend not in " ".join(equal.stdout.split())


def test_describe_shows_what_is_applied_and_what_has_changed(tmp_path: Path, spec: PipelineSpec) -> None:
    before = perennial(tmp_path, "features", "describe", spec.name)
    assert before.returncode == 2
    assert f"run `perennial ingest {spec.name}` first" in before.stderr
    view = spec.views[0]
    write_online(spec, Settings(home=tmp_path), view, rows_of(view, ["a"], 1.0))
    applied = perennial(tmp_path, "features", "describe", spec.name)
    assert applied.returncode == 0, applied.stderr
    for name in (view.name, view.topic, *(a.name for a in view.aggregates)):
        assert name in applied.stdout
    assert "is what is applied" in applied.stdout
    with (tmp_path / "pipelines" / spec.name / "features.py").open("a") as code:
        code.write("\n# Another line.\n")
    changed = perennial(tmp_path, "features", "describe", spec.name)
    assert "The code has changed since this was applied" in changed.stdout
    assert "is what is applied" not in changed.stdout


@pytest.mark.parametrize("option", [(), ("--view", "none_such")])
def test_a_backfill_of_a_pipeline_without_views_says_that_it_has_none(
    option: tuple[str, ...], tmp_path: Path, spec: PipelineSpec
) -> None:
    with (tmp_path / "pipelines" / spec.name / "pipeline.py").open("a") as code:
        code.write('\nPIPELINE = PIPELINE.model_copy(update={"views": ()})\n')
    told = perennial(tmp_path, "features", "backfill", spec.name, *option)
    assert told.returncode == 2
    sentence = f"{spec.name} has no views, so there is nothing to backfill"
    assert sentence in " ".join(told.stderr.split())


def test_backfill_tells_its_rows_and_describe_says_when_one_is_wanted(
    tmp_path: Path, spec: PipelineSpec, broker: Any
) -> None:
    unknown = perennial(tmp_path, "features", "backfill", spec.name, "--view", "none_such")
    assert unknown.returncode == 2
    assert f"{spec.name} has no view 'none_such'; it has {', '.join(v.name for v in spec.views)}" in unknown.stderr
    nothing = perennial(tmp_path, "features", "backfill", spec.name)
    assert nothing.returncode == 2
    assert f"run `perennial ingest {spec.name}` first" in nothing.stderr
    settings = Settings(home=tmp_path, kafka_bootstrap_servers=broker.address)
    lake, day = Lake(settings, spec.name), datetime(2024, 1, 2, tzinfo=UTC)
    replay(settings, spec, day, day + timedelta(days=1))
    for event in spec.events:
        ingest_topics(settings, lake, [event], day + timedelta(days=2))
    for each in spec.views:
        refresh_view(settings, lake, spec, each)
    code = tmp_path / "pipelines" / spec.name / "features.py"
    wanted = f"`perennial features backfill {spec.name} --view"
    (tmp_path / "pipelines" / spec.name / "features.py").write_text(
        code.read_text().replace("window_s=DAY_S", "window_s=DAY_S // 24")
    )
    view, other = (next(v for v in spec.views if (v.name == "customer_views") is is_it) for is_it in (True, False))
    before = " ".join(perennial(tmp_path, "features", "describe", spec.name).stdout.split())
    assert f"Some rows of {view.name} in the lake were built by another definition" in before
    assert f"{wanted} {view.name}`" in before
    assert f"{wanted} {other.name}`" not in before
    assert f"{wanted} {view.name}`" in " ".join(perennial(tmp_path, "features", "check", spec.name).stdout.split())
    rows = lake.rows(view_table(view))
    done = perennial(tmp_path, "features", "backfill", spec.name, "--view", view.name)
    assert done.returncode == 0, done.stderr
    once = lake.read(view_table(view)).select(view.entity, "event_timestamp").unique().height
    assert f"{view.name}: {rows:,} rows before, {once:,} rows after; " in done.stdout
    assert other.name not in done.stdout
    assert wanted not in " ".join(perennial(tmp_path, "features", "describe", spec.name).stdout.split())
    equal = perennial(tmp_path, "features", "check", spec.name)
    assert equal.returncode == 0, equal.stdout


def shown(*renderables: object) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    for renderable in renderables:
        console.print(renderable)
    return console.export_text()


def test_long_names_are_whole_in_a_narrow_terminal() -> None:
    of = FeatureLineage(
        view="aircraft_last_arrivals",
        feature="aircraft_arrival_delay_minutes_last_7d",
        entity="aircraft",
        topic="flights.arrived.v1",
        key="aircraft",
        field="arrival_delay_min",
        function="last",
        window_s="604800",
        ttl_s="90000",
        code="0.1.0+0123abcd",
    )
    text = shown(*lineage_tables([of]))
    for part in (of.view, of.feature, of.field, "last of arrival_delay_min", "7 d", "25 h", of.topic, of.code):
        assert part in text
    check = ViewCheck("aircraft_arrivals", 1_234_567, {"older online": 1_000, "not offline": 2})
    text = shown(check_table([check, ViewCheck("b", 0), ViewCheck("c", 3)]))
    for part in ("aircraft_arrivals", "1,234,567", "1,000", "FAIL", "INCONCLUSIVE", "PASS"):
        assert part in text


def test_a_difference_is_told_to_the_microsecond_and_the_last_digit() -> None:
    older = Difference("N1", "older online", T0 + timedelta(microseconds=7), T0)
    assert told(older) == ("'N1': older online, offline 2026-03-01 12:00:00.000007, online 2026-03-01 12:00:00")
    value = Difference("N1", "value differs", T0, T0, "delay_mean_3h", 0.1 + 0.2, None)
    assert told(value) == (
        "'N1': value differs, delay_mean_3h at 2026-03-01 12:00:00 is offline 0.30000000000000004, online null"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [("1", "1 s"), ("90", "90 s"), ("3600", "1 h"), ("86400", "24 h"), ("604800", "7 d"), ("0", "0 s"), ("?", "?")],
)
def test_a_length_of_time_is_told_in_its_unit_that_is_whole(seconds: str, text: str) -> None:
    assert span(seconds) == text
