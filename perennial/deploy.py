"""What Prefect is told: deployments in a prefect.yaml, and of the local stack the work pool and whether its worker lives."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import httpx

from perennial.errors import StateError
from perennial.web_addresses import without_user

WORK_POOL = "perennial"


def make_work_pool(client: httpx.Client, api_url: str) -> None:
    """Make the work pool of type `process` unless it is there; its worker fills in the job template.

    Raises:
        StateError: the server refused it.
    """
    answer = client.post(f"{api_url}/work_pools/", json={"name": WORK_POOL, "type": "process"})
    if answer.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise StateError(
            f"Prefect at {without_user(api_url)} refused the work pool {WORK_POOL!r}: {answer.status_code} {answer.text}"
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


def add_deployments(prefect_file: Path, pipeline: str) -> bool:
    """Give a pipeline the deployments that another one has: the first of the file. What is there is left as it is.

    Args:
        prefect_file: a prefect.yaml, whose list of deployments ends the file.
        pipeline: name of the new pipeline.

    Returns:
        Whether anything was added; False where the pipeline has deployments already.

    Raises:
        StateError: the file names no pipeline's deployments, or cannot be written.
    """
    import yaml

    text = _read(prefect_file)
    try:
        known = yaml.safe_load(text)["deployments"]
        model = known[0]["parameters"]["pipeline"]
        ours = [d for d in known if d["parameters"]["pipeline"] == model]
        if any(d["parameters"]["pipeline"] == pipeline for d in known):
            return False
        added = _renamed(ours, model, pipeline)
        block = yaml.dump(added, Dumper=_dumper(), sort_keys=False, default_flow_style=None, width=110)
        longer = f"{text.rstrip()}\n\n  # Deployments of the pipeline `{pipeline}`.\n{textwrap.indent(block, '  ')}"
        if yaml.safe_load(longer)["deployments"] != [*known, *added]:
            raise StateError(
                f"{prefect_file} does not end with its list of deployments; add those of {pipeline!r} by hand"
            )
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise StateError(f"{prefect_file} names no pipeline's deployments ({error!r}); restore it first") from error
    unfinished = prefect_file.with_suffix(".new")
    try:
        unfinished.write_text(longer, encoding="utf-8")
        unfinished.replace(prefect_file)
    except OSError as error:
        raise StateError(f"{prefect_file} cannot be written ({error.strerror}); make room, then run again") from error
    return True


def _read(prefect_file: Path) -> str:
    try:
        return prefect_file.read_text(encoding="utf-8")
    except OSError as error:
        raise StateError(f"{prefect_file} cannot be read ({error.strerror}); restore it from the repository") from error


def _renamed(value: Any, old: str, new: str) -> Any:
    """The value with the whole word `old` replaced in every text."""
    if isinstance(value, dict):
        return {key: _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, old, new) for inner in value]
    return re.sub(rf"\b{re.escape(old)}\b", new, value) if isinstance(value, str) else value


def _dumper() -> Any:
    import yaml

    class Plain(yaml.SafeDumper):
        """Without anchors: a person edits one deployment and means that one."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    return Plain
