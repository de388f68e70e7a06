"""What the local stack tells its Prefect server: the work pool, the deployments, and whether the worker lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from perennial.errors import StateError

WORK_POOL = "perennial"


def make_work_pool(client: httpx.Client, api_url: str) -> None:
    """Make the work pool of type `process` unless it is there; its worker fills in the job template.

    Raises:
        StateError: the server refused it.
    """
    answer = client.post(f"{api_url}/work_pools/", json={"name": WORK_POOL, "type": "process"})
    if answer.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise StateError(
            f"Prefect at {api_url} refused the work pool {WORK_POOL!r}: {answer.status_code} {answer.text}"
        )


def worker_is_online(client: httpx.Client, api_url: str, worker: str) -> bool:
    """Whether a worker of that name has reported to the work pool and is not gone."""
    try:
        answer = client.post(f"{api_url}/work_pools/{WORK_POOL}/workers/filter", json={})
    except httpx.HTTPError:
        return False
    return answer.is_success and any(w["name"] == worker and w["status"] == "ONLINE" for w in answer.json())


def write_deployments(source: Path, target: Path, *, schedules: bool) -> None:
    """Copy a prefect.yaml, with every schedule inactive unless `schedules`: so nothing starts between deploy and pause.

    Raises:
        StateError: `source` cannot be read or is no mapping with a list of deployments.
    """
    import yaml

    try:
        project: Any = yaml.safe_load(source.read_text())
        for deployment in project["deployments"]:
            for schedule in deployment.get("schedules") or []:
                schedule["active"] = schedules and schedule.get("active", True)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise StateError(f"{source} names no deployments ({error}); restore it from the repository") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(project, sort_keys=False))
