"""Tells a cluster's Prefect its work pool and deployments: `python -m flows.cluster_deployments FOLDER`.

A job of infra/kubernetes. FOLDER holds work-pool.json, the base job template, and job-variables.yaml, what runs of a flow have
in place of its defaults.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.prefect_worker import run_prefect
from perennial.deploy import WORK_POOL
from perennial.errors import PerennialError, StateError, UnreachableError, UsageError

SERVER_WITHIN_S = 300.0


def with_image(template: Mapping[str, Any], image: str) -> dict[str, Any]:
    """A base job template whose runs have this image."""
    variables = template["variables"]
    properties = {**variables["properties"], "image": {**variables["properties"]["image"], "default": image}}
    return {**template, "variables": {**variables, "properties": properties}}


def with_job_variables(
    project: Mapping[str, Any], variables: Mapping[str, Mapping[str, Any]], template: Mapping[str, Any]
) -> dict[str, Any]:
    """A prefect.yaml whose deployments have the job variables of their flow.

    Args:
        project: what prefect.yaml says.
        variables: job variables by name of a flow, the last part of a deployment's entrypoint.
        template: the base job template, which must know them.

    Raises:
        UsageError: a flow that nothing deploys, or a variable that the template does not know.
    """
    flows = {deployment["entrypoint"].rpartition(".")[2] for deployment in project["deployments"]}
    if unknown := sorted(set(variables) - flows):
        raise UsageError(f"job-variables.yaml names {unknown}, and prefect.yaml deploys {sorted(flows)}; correct it")
    known = set(template["variables"]["properties"])
    if unknown := sorted({name for of_flow in variables.values() for name in of_flow} - known):
        raise UsageError(f"job-variables.yaml sets {unknown}, and work-pool.json knows {sorted(known)}; correct it")

    def told(deployment: Mapping[str, Any]) -> dict[str, Any]:
        extra = variables.get(deployment["entrypoint"].rpartition(".")[2], {})
        pool = deployment["work_pool"]
        return {**deployment, "work_pool": {**pool, "job_variables": {**pool.get("job_variables", {}), **extra}}}

    return {**project, "deployments": [told(deployment) for deployment in project["deployments"]]}


def main() -> int:
    """Wait for the server, make or change the work pool, deploy everything; the exit status."""
    try:
        return _run(Path(sys.argv[1]), Path("prefect.yaml"), os.environ)
    except PerennialError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def _run(folder: Path, prefect_file: Path, environment: Mapping[str, str]) -> int:
    image = environment.get("WORKER_IMAGE")
    if not image:
        raise UsageError("WORKER_IMAGE is not set; set it to the image that flow runs are to have")
    try:
        template = with_image(json.loads((folder / "work-pool.json").read_text()), image)
        variables = yaml.safe_load((folder / "job-variables.yaml").read_text()) or {}
        project = with_job_variables(yaml.safe_load(prefect_file.read_text()), variables, template)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise StateError(
            f"the work pool's files cannot be used ({error!r}); restore them from the repository"
        ) from error
    _wait(environment["PREFECT_API_URL"])
    with tempfile.TemporaryDirectory() as made:
        pool_file, deployments = Path(made) / "work-pool.json", Path(made) / "prefect.yaml"
        pool_file.write_text(json.dumps(template))
        deployments.write_text(yaml.safe_dump(project, sort_keys=False))
        pool = ["work-pool", "create", WORK_POOL, "--type", "kubernetes", "--base-job-template", str(pool_file)]
        failed = run_prefect("--no-prompt", *pool, "--overwrite")
        return failed or run_prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(deployments))


def _wait(api_url: str) -> None:
    deadline = time.monotonic() + SERVER_WITHIN_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while True:
            try:
                if client.get(f"{api_url}/health").is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"Prefect's server at {api_url} has not answered for {SERVER_WITHIN_S:.0f} s; look at the pod prefect-server"
                )
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
