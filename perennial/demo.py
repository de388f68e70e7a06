"""The main job, watched: a year of flights at many times its speed, from the first event to a bad release rolled back.

Everything is real: the broker, the flows, the models, the requests. Only the calendar is simulated, and it waits while a
retrain and its rollout are under way.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from perennial.errors import PerennialError, StageError, UsageError
from perennial.memory import PeakMemory
from perennial.ports import StackPorts, prefer
from perennial.settings import Settings, settings
from perennial.stack import Stack, start_stack
from perennial.tables import figures_table, services_table

if TYPE_CHECKING:
    from flows.context import Context
    from flows.monitor import MonitorSummary

PIPELINE = "flights"
BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
BOOTSTRAP_UNTIL = datetime(2013, 3, 1, tzinfo=UTC)
LAST_DAY = datetime(2013, 12, 31, tzinfo=UTC)
DAY = timedelta(days=1)
BROKEN_RECORDS_DAY = datetime(2013, 3, 5, tzinfo=UTC)
BROKEN_RECORDS = 25
REQUESTS_PER_S = 80.0
RUN_LIMIT_S = 240.0


@dataclass
class Figures:
    """What the demo measured; the keys of its JSON."""

    events_produced: int = 0
    events_ingested: int = 0
    dead_lettered: int = 0
    monthly_auc: dict[str, dict[str, float]] = field(default_factory=dict)
    mean_auc: dict[str, float] = field(default_factory=dict)
    drift_alerts: list[dict[str, Any]] = field(default_factory=list)
    retrains: list[dict[str, Any]] = field(default_factory=list)
    promotions: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    bad_release: dict[str, Any] = field(default_factory=dict)
    drift_to_serving_s: list[float] = field(default_factory=list)
    live_traffic: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    peak_rss_mb: float = 0.0
    peak_rss_process: str = ""
    stages: dict[str, bool] = field(default_factory=dict)


def run_demo(through: datetime, json_file: Path | None, keep: bool) -> int:
    """Run the demo.

    Args:
        through: the last simulated day.
        json_file: where the figures go, as JSON.
        keep: leave the stack running at the end until Ctrl-C.

    Returns:
        0 if every stage really happened, otherwise 1.

    Raises:
        UsageError: the day is not one of March to December 2013, or the file cannot be written.
    """
    if not BOOTSTRAP_UNTIL <= through <= LAST_DAY:
        raise UsageError(
            f"--through {through:%Y-%m-%d} is not between {BOOTSTRAP_UNTIL:%Y-%m-%d} and {LAST_DAY:%Y-%m-%d}; "
            "January and February train the first model"
        )
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no folder {json_file.resolve().parent}; make it first")
    console = Console()
    began = time.monotonic()
    home = settings().root / "demo"
    os.environ["PERENNIAL_HOME"] = str(home)
    settings.cache_clear()
    with PeakMemory() as memory:
        _clear(home)
        console.print(f"[bold]perennial demo[/]: real flights of 2013, {BEGIN:%d %B} to {through:%d %B}. State: {home}")
        with start_stack(settings(), prefer(StackPorts()), schedules=False, on_progress=console.print) as stack:
            console.print(services_table(stack.services))
            figures = Demo(stack, settings(), console, through).run()
            figures.wall_s = round(time.monotonic() - began, 1)
            figures.peak_rss_mb, figures.peak_rss_process = memory.peak()
            _tell(console, stack, figures, json_file)
            if keep:
                console.print("Everything keeps running. Ctrl-C stops it.")
                with suppress(KeyboardInterrupt):
                    stack.wait()
    return 0 if figures.stages and all(figures.stages.values()) else 1


class Demo:
    """One run of the demo on a started stack."""

    def __init__(self, stack: Stack, configured: Settings, console: Console, through: datetime) -> None:
        self.stack = stack
        self.console = console
        self.through = through
        self.figures = Figures()
        self.verdicts: dict[str, set[str]] = {}
        self.automatic: list[str] = []
        self.traffic_report = configured.root / "traffic.json"
        _become_client_of(stack, configured)

    def run(self) -> Figures:
        """Every stage, one after the other; a stage that fails ends the run and leaves its mark in `stages`."""
        from flows.context import open_context

        self.context: Context = open_context(PIPELINE)
        with suppress(KeyboardInterrupt):
            try:
                asyncio.run(self._run())
            except PerennialError as error:
                self.console.print(f"[red]{error}[/]")
        self._measure()
        return self.figures

    async def _run(self) -> None:
        from flows.runs import one_client

        async with one_client():
            await self._watch()

    async def _watch(self) -> None:
        days = (self.through - BOOTSTRAP_UNTIL).days + 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=False) as progress:
            bar = progress.add_task("bootstrap: January and February", total=days)
            await self._bootstrap()
            traffic = self._start_traffic()
            try:
                for number in range(days):
                    day = BOOTSTRAP_UNTIL + number * DAY
                    progress.update(bar, description=f"{day:%a %d %B %Y}", completed=number)
                    await self._live_through(day, traffic)
                progress.update(bar, description="a bad release", completed=days)
                await self._release_bad_model()
                progress.update(bar, description="done")
            finally:
                _stop(traffic)

    async def _bootstrap(self) -> None:
        from flows.ingest import ingest
        from flows.retrain import retrain

        await asyncio.to_thread(self._produce, BEGIN, BOOTSTRAP_UNTIL)
        await ingest(PIPELINE, BOOTSTRAP_UNTIL)
        began = datetime.now(UTC)
        summary = await retrain(PIPELINE, BOOTSTRAP_UNTIL, reason="bootstrap: there is no champion")
        await self._until_serving(summary.version, began)
        self.console.print(f"version {summary.version} is the first champion: {summary.reason}")

    async def _live_through(self, day: datetime, traffic: subprocess.Popen[str]) -> None:
        """One simulated day: events come in, are scored and monitored; a retrain that pays is waited for."""
        from flows.ingest import ingest
        from flows.monitor import monitor
        from flows.score import score

        _tell_day(traffic, day)
        await asyncio.to_thread(self._produce, day, day + DAY)
        now = day + DAY
        await ingest(PIPELINE, now)
        await score(PIPELINE, now)
        noticed = datetime.now(UTC)
        found = await monitor(PIPELINE, now)
        self._note(found, now)
        if found.decision.retrain:
            await self._follow_retrain(now, noticed)

    def _note(self, found: MonitorSummary, now: datetime) -> None:
        for check, verdict in found.verdicts.items():
            self.verdicts.setdefault(check, set()).add(verdict.status.name)
        for check in found.alerts:
            reason = found.verdicts[check].reason
            self.figures.drift_alerts.append({"as_of": now.isoformat(), "check": check, "reason": reason})
            self.console.print(f"{now:%d %b}  [yellow]alert[/] {check}: {reason[:160]}")

    async def _follow_retrain(self, now: datetime, noticed: datetime) -> None:
        """The calendar waits while the automation's retrain runs and, if it was accepted, until the new version serves."""
        from flows.runs import wait_for_run
        from training.history import retrains

        self.console.print(f"{now:%d %b}  a retrain pays; the automation starts it")
        run = await wait_for_run("retrain", noticed, RUN_LIMIT_S)
        if run.state != "Completed":
            raise StageError(f"the retrain {run.name!r} ended as {run.state}: {run.message}; see the worker's log")
        if run.automatic:
            self.automatic.append(run.run_id)
        newest = retrains(self.context.lake)[-1]
        told = f"champion {newest.champion_auc:.4f}, candidate {newest.candidate_auc:.4f}"
        self.console.print(f"{now:%d %b}  version {newest.version} is {newest.decision} (AUC: {told})")
        if newest.decision == "accepted":
            rollout = await wait_for_run("rollout", noticed, RUN_LIMIT_S)
            if rollout.state != "Completed":
                raise StageError(f"the rollout {rollout.name!r} ended as {rollout.state}: {rollout.message}")
            serving = await self._serving()
            if serving["champion"]["version"] == newest.version:
                self.figures.drift_to_serving_s.append(round((datetime.now(UTC) - noticed).total_seconds(), 1))
            self.console.print(f"{now:%d %b}  version {serving['champion']['version']} serves")

    async def _release_bad_model(self) -> None:
        """A model fitted on inverted labels, released past the gate: the canary must find out."""
        from flows.context import announce
        from flows.retrain import CHALLENGER
        from perennial.bad_model import register_bad_model
        from training import registry

        now = self.through + DAY
        before = (await self._serving())["champion"]["version"]
        bad = await asyncio.to_thread(register_bad_model, self.context, now)
        uri = self.context.settings.mlflow_tracking_uri
        registry.set_alias(uri, PIPELINE, CHALLENGER, bad.version)
        self.console.print(f"version {bad.version} was fitted on inverted labels and is released past the gate")
        released = datetime.now(UTC)
        announce("perennial.candidate.accepted", PIPELINE, {"as_of": now.isoformat(), "version": bad.version})
        from flows.runs import wait_for_run

        await wait_for_run("rollout", released, RUN_LIMIT_S)
        history = [e for e in self.context.ledger.history(PIPELINE) if e.at >= released]
        started = next(
            (e for e in history if e.action == "start" and e.challenger and e.challenger.version == bad.version), None
        )
        ended = next((e for e in history if e.action == "rollback"), None)
        if started is None or ended is None:
            raise StageError(
                f"the bad version {bad.version} was not rolled back; the ledger says {[e.action for e in history]}"
            )
        serving = await self._serving()
        await asyncio.sleep(1.5)  # the service tells the ledger what it answered once a second
        answered = self.context.ledger.observations(PIPELINE, bad.version, started.at)
        self.figures.bad_release = {
            "version": bad.version,
            "rollback_s": round((ended.at - started.at).total_seconds(), 2),
            "release_to_rollback_s": round((ended.at - released).total_seconds(), 2),
            "bad_responses": answered.requests,
            "reason": ended.reason,
            "restored_version": serving["champion"]["version"],
            "champion_before": before,
        }
        self.console.print(f"[red]rolled back[/] to version {serving['champion']['version']}: {ended.reason}")

    def _produce(self, start: datetime, end: datetime) -> None:
        from features.consumer import open_producer
        from features.replay import replay

        counts = replay(self.context.settings, self.context.spec, start, end)
        self.figures.events_produced += sum(counts.values())
        if start <= BROKEN_RECORDS_DAY < end:
            topic = self.context.spec.scored.topic
            with open_producer(self.context.settings) as producer:
                for number in range(BROKEN_RECORDS):
                    producer.send(topic, value=b'{"cut off in the middle": %d, "' % number)
            self.figures.events_produced += BROKEN_RECORDS

    def _start_traffic(self) -> subprocess.Popen[str]:
        url, report = self.stack.addresses["scoring_url"], str(self.traffic_report)
        command = [sys.executable, "-m", "perennial.traffic", PIPELINE, "--url", url, "--report", report]
        return subprocess.Popen([*command, "--rate", str(REQUESTS_PER_S)], stdin=subprocess.PIPE, text=True)

    async def _serving(self) -> dict[str, Any]:
        """Who serves, as the service itself says, once it has caught up with the ledger."""
        import httpx

        deadline = time.monotonic() + 30
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                state = self.context.ledger.state(PIPELINE)
                answer = await client.get(f"{self.stack.addresses['scoring_url']}/v1/{PIPELINE}/serving")
                if answer.is_success and state and answer.json()["sequence"] == state.sequence:
                    return dict(answer.json())
                await asyncio.sleep(0.2)
        raise StageError("the scoring service did not follow the ledger within 30 s; see its log")

    async def _until_serving(self, version: str | None, since: datetime) -> None:
        from flows.runs import wait_for_run

        await wait_for_run("rollout", since, RUN_LIMIT_S)
        found = (await self._serving())["champion"]["version"]
        if version is None or found != version:
            raise StageError(f"version {version} should be the first champion, but {found} serves")

    def _measure(self) -> None:
        """Everything that can be read afterwards from the lake, the ledger and the traffic's report."""
        from perennial.demo_figures import measure

        report = json.loads(self.traffic_report.read_text()) if self.traffic_report.exists() else {}
        measure(self.context, self.figures, self.verdicts, self.automatic, report)


def _become_client_of(stack: Stack, configured: Settings) -> None:
    """Flows of this process run on the stack; their logs go to its server, not to this terminal."""
    from perennial.addresses import child_environment

    os.environ.update(child_environment(configured, stack.addresses, own_prefect=True))
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "ERROR"
    settings.cache_clear()


def _clear(home: Path) -> None:
    """An earlier demo's state goes, unless its stack still runs."""
    from perennial.claim import Claim
    from perennial.processes import stop_trees

    home.mkdir(parents=True, exist_ok=True)
    claim = Claim(home, os.getpid())
    try:
        stop_trees(claim.left_over)
    finally:
        claim.release()
    shutil.rmtree(home)


def _tell_day(traffic: subprocess.Popen[str], day: datetime) -> None:
    if traffic.stdin is None or traffic.poll() is not None:
        raise StageError(f"the live traffic ended by itself with exit status {traffic.poll()}")
    traffic.stdin.write(f"{day:%Y-%m-%d}\n")
    traffic.stdin.flush()


def _stop(traffic: subprocess.Popen[str]) -> None:
    traffic.terminate()
    try:
        traffic.wait(15)
    except subprocess.TimeoutExpired:
        traffic.kill()


def _tell(console: Console, stack: Stack, figures: Figures, json_file: Path | None) -> None:
    console.print(figures_table(asdict(figures)))
    addresses: Mapping[str, str] = stack.addresses
    console.print(
        f"Prefect {addresses['prefect_api_url'].removesuffix('/api')}   MLflow {addresses['mlflow_tracking_uri']}"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), indent=1))
        console.print(f"figures: {json_file}")
    missing = [name for name, happened in figures.stages.items() if not happened]
    console.print("[green]every stage happened[/]" if not missing else f"[red]did not happen: {', '.join(missing)}[/]")
