"""Runs of deployments, as an onlooker sees them: has one begun, how did it end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import AsyncClientContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from perennial.errors import StageError


@dataclass(frozen=True)
class RunOutcome:
    """How a deployment's run ended.

    Attributes:
        run_id: Prefect's id of the run.
        name: of the run.
        state: name of its final state, such as "Completed".
        automatic: whether an automation created it.
        message: the final state's message.
    """

    run_id: str
    name: str
    state: str
    automatic: bool
    message: str


@asynccontextmanager
async def one_client(api_url: str) -> AsyncIterator[None]:
    """Let every flow run of the block go to that server by one client: making a new one costs a tenth of a second."""
    with temporary_settings({PREFECT_API_URL: api_url}):
        async with AsyncClientContext.get_or_create():
            yield


def hand_over(timeout_s: float = 5.0) -> None:
    """Let Prefect send this process's last events and logs; call it after the last run, while the server is still there.

    Without a server it would try for more than a minute when the process ends.

    Args:
        timeout_s: longest time for each of both.
    """
    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=timeout_s)


async def wait_for_run(flow_name: str, after: datetime, timeout_s: float) -> RunOutcome:
    """Wait until a deployment's run that was created after a moment has ended.

    Args:
        flow_name: of the deployment's flow.
        after: earlier runs are not meant (UTC).
        timeout_s: how long to wait for its beginning and end together.

    Raises:
        StageError: none began, or the one that began did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    found: FlowRun | None = None
    async with get_client() as client:
        while time.monotonic() < deadline:
            runs = await client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
                flow_run_filter=FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=after)),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            )
            found = next((run for run in runs if run.deployment_id is not None), None)
            if found is not None and found.state is not None and found.state.is_final():
                created_by = found.created_by.type if found.created_by else ""
                message = found.state.message or ""
                return RunOutcome(
                    str(found.id), found.name, found.state.name or "", created_by == "AUTOMATION", message
                )
            await asyncio.sleep(0.3)
    state = found.state.name if found and found.state else None
    what = f"the run {found.name!r} is {state}" if found else f"no run of {flow_name!r} began"
    raise StageError(f"{what} after {timeout_s:.0f} s; see the worker's log and the automations in the Prefect UI")
