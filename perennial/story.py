"""A pipeline's history, lived through at many times its speed: from the first event to a bad release rolled back.

Everything is real: the broker, the flows, the models, the requests. Only the calendar is simulated, and it waits while a
retrain and its rollout are under way.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from perennial.errors import PerennialError, StageError
from perennial.figures import Figures, measure
from perennial.intake import Intake
from perennial.settings import Settings, settings
from perennial.stack import Stack

if TYPE_CHECKING:
    from flows.context import Context
    from flows.monitor import MonitorSummary

DAY = timedelta(days=1)
QUIET_PER_S, BUSY_PER_S = 10, 120
RUN_LIMIT_S = 240.0


@dataclass(frozen=True)
class Story:
    """What happens when, in a pipeline's history.

    Attributes:
        pipeline: whose history.
        begin: first event (UTC).
        bootstrap_until: events before it train the first champion; from it on days pass one by one.
        through: the last day.
        broken_day: on which a producer sends `broken_records` records that cannot be read.
        broken_records: how many.
    """

    pipeline: str
    begin: datetime
    bootstrap_until: datetime
    through: datetime
    broken_day: datetime
    broken_records: int = 25


class Telling:
    """A story, told on a running stack."""

    def __init__(self, story: Story, stack: Stack, intake: Intake, configured: Settings, console: Console) -> None:
        self.story = story
        self.stack = stack
        self.intake = intake
        self.console = console
        self.figures = Figures()
        self.verdicts: dict[str, set[str]] = {}
        self.automatic: list[str] = []
        self.traffic_report = configured.root / "traffic.json"
        _become_client_of(stack, configured)

    def run(self) -> Figures:
        """Every stage, one after the other; a stage that fails ends the run and leaves its mark in `stages`."""
        from flows.context import open_context
        from flows.runs import hand_over

        self.context: Context = open_context(self.story.pipeline)
        try:
            asyncio.run(self._run())
        except PerennialError as error:
            self.console.print(f"[red]{error}[/]")
        except KeyboardInterrupt:
            self.console.print("[yellow]stopped by Ctrl-C; what happened until then:[/]")
        finally:
            hand_over()
        self._measure()
        return self.figures

    async def _run(self) -> None:
        from flows.runs import one_client

        async with one_client(self.stack.addresses["prefect_api_url"]):
            await self._watch()

    async def _watch(self) -> None:
        days = (self.story.through - self.story.bootstrap_until).days + 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=False) as progress:
            bar = progress.add_task("the first champion", total=days)
            await self._bootstrap()
            traffic = self._start_traffic()
            try:
                taken_in = self._take_in(self.story.bootstrap_until)
                for number in range(days):
                    day = self.story.bootstrap_until + number * DAY
                    progress.update(bar, description=f"{day:%a %d %B %Y}", completed=number)
                    if not self.console.is_terminal and number % 7 == 0:
                        self.console.print(f"{day:%d %b}")
                    self.figures.events_produced += await taken_in
                    # As where schedules start them, ingest runs beside score and monitor, whose `as_of` keeps the next
                    # day's events from them.
                    if number + 1 < days:
                        taken_in = self._take_in(day + DAY)
                    await self._live_through(day, traffic)
                progress.update(bar, description="a bad release", completed=days)
                _ask(traffic, self.story.through, BUSY_PER_S)
                await self._release_bad_model()
                progress.update(bar, description="done")
            finally:
                _stop(traffic)

    def _take_in(self, day: datetime) -> asyncio.Task[int]:
        """Have a day's events produced and ingested; the answer is how many were produced."""
        broken = self.story.broken_records if day <= self.story.broken_day < day + DAY else 0
        return asyncio.create_task(self.intake.take_in(day, day + DAY, broken))

    async def _bootstrap(self) -> None:
        taken_in = asyncio.create_task(self.intake.take_in(self.story.begin, self.story.bootstrap_until))
        from flows.retrain import retrain  # takes seconds, in which the events are ingested

        self.figures.events_produced += await taken_in
        began = datetime.now(UTC)
        summary = await retrain(
            self.story.pipeline, self.story.bootstrap_until, reason="bootstrap: there is no champion"
        )
        await self._until_serving(summary.version, began)
        self.console.print(f"version {summary.version} is the first champion: {summary.reason}")

    async def _live_through(self, day: datetime, traffic: subprocess.Popen[str]) -> None:
        """One simulated day, its events in the lake: score, monitor; a retrain that pays is waited for."""
        from flows.monitor import monitor
        from flows.score import score

        _ask(traffic, day, QUIET_PER_S)
        now = day + DAY
        await score(self.story.pipeline, now)
        noticed = datetime.now(UTC)
        found = await monitor(self.story.pipeline, now)
        self._note(found, now)
        if found.decision.retrain:
            await self._follow_retrain(now, noticed, found.decision.triggers, traffic)

    def _note(self, found: MonitorSummary, now: datetime) -> None:
        for check, verdict in found.verdicts.items():
            self.verdicts.setdefault(check, set()).add(verdict.status.name)
        for check in found.alerts:
            reason = found.verdicts[check].reason
            self.figures.drift_alerts.append({"as_of": now.isoformat(), "check": check, "reason": reason})
            self.console.print(f"{now:%d %b}  [yellow]alert[/] {check}: {escape(reason)}", highlight=False)
            self.console.print(f"{now:%d %b}  {found.decision.summary}", highlight=False)
            if check == "drift" and found.report:
                self.console.print(f"{now:%d %b}  report: {found.report}", highlight=False, soft_wrap=True)

    async def _follow_retrain(
        self, now: datetime, noticed: datetime, triggers: tuple[str, ...], traffic: subprocess.Popen[str]
    ) -> None:
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
            _ask(traffic, now - DAY, BUSY_PER_S)
            rollout = await wait_for_run("rollout", noticed, RUN_LIMIT_S)
            if rollout.state != "Completed":
                raise StageError(f"the rollout {rollout.name!r} ended as {rollout.state}: {rollout.message}")
            serving = await self._serving()
            if serving["champion"]["version"] == newest.version and "drift" in triggers:
                self.figures.drift_to_serving_s.append(round((datetime.now(UTC) - noticed).total_seconds(), 1))
            self.console.print(f"{now:%d %b}  version {serving['champion']['version']} serves")

    async def _release_bad_model(self) -> None:
        """A model fitted on inverted labels, released past the gate: the canary must find out."""
        from flows.context import announce
        from perennial.bad_model import register_bad_model
        from training import registry

        now = self.story.through + DAY
        before = (await self._serving())["champion"]["version"]
        bad = await asyncio.to_thread(register_bad_model, self.context, now)
        uri = self.context.settings.mlflow_tracking_uri
        registry.set_alias(uri, self.story.pipeline, registry.CHALLENGER, bad.version)
        self.console.print(f"version {bad.version} was fitted on inverted labels and is released past the gate")
        released = datetime.now(UTC)
        announce(
            "perennial.candidate.accepted", self.story.pipeline, {"as_of": now.isoformat(), "version": bad.version}
        )
        first_s, gone_s = await self._share_comes_and_goes(bad.version, released)
        from flows.runs import wait_for_run

        await wait_for_run("rollout", released, RUN_LIMIT_S)
        history = [e for e in self.context.ledger.history(self.story.pipeline) if e.at >= released]
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
        answered = self.context.ledger.observations(self.story.pipeline, bad.version, started.sequence)
        self.figures.bad_release = {
            "version": bad.version,
            "rollback_s": round(gone_s, 2),
            "exposed_s": round(gone_s - first_s, 2),
            "bad_responses": answered.requests - answered.errors,
            "reason": ended.reason,
            "restored_version": serving["champion"]["version"],
            "champion_before": before,
        }
        self.console.print(f"[red]rolled back[/] to version {serving['champion']['version']}: {ended.reason}")

    def _start_traffic(self) -> subprocess.Popen[str]:
        url, report = self.stack.addresses["scoring_url"], str(self.traffic_report)
        command = [sys.executable, "-m", "perennial.traffic", self.story.pipeline, "--url", url, "--report", report]
        # In a session of its own: Ctrl-C goes to the whole group of processes, and would find it amid its imports.
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    async def _serving(self) -> dict[str, Any]:
        """Who serves, as the service itself says, once it has caught up with the ledger."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = self.context.ledger.state(self.story.pipeline)
            answer = await self._ask_service(f"v1/{self.story.pipeline}/serving")
            ready = await self._ask_service("ready")
            if state and ready is not None and answer is not None and answer["sequence"] == state.sequence:
                return answer
            await asyncio.sleep(0.2)
        raise StageError("the scoring service did not follow the ledger within 60 s; see its log")

    async def _share_comes_and_goes(self, version: str, since: datetime) -> tuple[float, float]:
        """Seconds from a release to the first share that the scoring service gives a version, and to none again."""
        first_s: float | None = None
        while (elapsed_s := (datetime.now(UTC) - since).total_seconds()) < RUN_LIMIT_S:
            answer = await self._ask_service(f"v1/{self.story.pipeline}/serving")
            challenger = answer["challenger"] if answer else None
            has_share = challenger is not None and challenger["version"] == version and challenger["share_pct"] > 0
            if has_share and first_s is None:
                first_s = elapsed_s
            elif not has_share and first_s is not None:
                return first_s, elapsed_s
            await asyncio.sleep(0.1)
        what = "kept its share" if first_s is not None else "got no share of the traffic"
        raise StageError(
            f"the bad version {version} {what} for {RUN_LIMIT_S:.0f} s; see the rollout runs in the Prefect UI"
        )

    async def _ask_service(self, path: str) -> dict[str, Any] | None:
        """What the scoring service answers; None while it is not ready to."""
        import httpx

        url = self.stack.addresses["scoring_url"]
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"{url}/{path}")
        except httpx.HTTPError as error:
            raise StageError(f"the scoring service at {url} does not answer ({error!r}); see its log") from error
        return dict(answer.json()) if answer.is_success else None

    async def _until_serving(self, version: str | None, since: datetime) -> None:
        from flows.runs import wait_for_run

        await wait_for_run("rollout", since, RUN_LIMIT_S)
        found = (await self._serving())["champion"]["version"]
        if version is None or found != version:
            raise StageError(f"version {version} should be the first champion, but {found} serves")

    def _measure(self) -> None:
        """Everything that can be read afterwards from the lake, the ledger and the traffic's report."""
        report = json.loads(self.traffic_report.read_text()) if self.traffic_report.exists() else {}
        measure(self.context, self.figures, self.verdicts, self.automatic, report)


def _become_client_of(stack: Stack, configured: Settings) -> None:
    """Flows of this process run on the stack; their logs go to its server, not to this terminal."""
    from perennial.addresses import child_environment

    os.environ.update(child_environment(configured, stack.addresses, own_prefect=True))
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    settings.cache_clear()


def _ask(traffic: subprocess.Popen[str], day: datetime, rate_per_s: int) -> None:
    """Let the live requests be that day's, at that rate."""
    if traffic.stdin is None or traffic.poll() is not None:
        raise StageError(f"the live traffic ended by itself with exit status {traffic.poll()}")
    traffic.stdin.write(f"{day:%Y-%m-%d} {rate_per_s}\n")
    traffic.stdin.flush()


def _stop(traffic: subprocess.Popen[str]) -> None:
    traffic.terminate()
    try:
        traffic.wait(15)
    except subprocess.TimeoutExpired:
        traffic.kill()
