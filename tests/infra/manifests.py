"""infra/kubernetes as kubectl renders it, and flow runs as Prefect's Kubernetes worker makes jobs of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from emulators import PREFECT_KUBERNETES

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
GOLDEN = Path(__file__).with_name("golden")
OVERLAYS = ("small", "production")
OF_THIS_PROCESS = re.compile(r"PREFECT_(?!_|API_URL|CLIENT_MAX_RETRIES|FLOW_RUN_EXECUTE).*")
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/perennial/worker:0.1.0"

Manifest = dict[str, Any]


def render(overlay: str, folder: Path) -> str:
    """An overlay with the example's addresses, rendered in a copy."""
    copy = folder / f"kubernetes-{overlay}"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("addresses.env"))
    at = copy / "overlays" / overlay
    shutil.copy(at / "addresses.env.example", at / "addresses.env")
    ran = subprocess.run(["kubectl", "kustomize", str(at)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def parse(text: str) -> list[Manifest]:
    """The manifests of a rendered overlay."""
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(kind/name, the pod's spec) of everything that makes pods."""
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", manifest["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def template() -> Manifest:
    """The work pool's base job template."""
    return dict(json.loads((KUBERNETES / "base" / "work-pool.json").read_text()))


def job_variables() -> Mapping[str, Manifest]:
    """Job variables by flow."""
    return dict(yaml.safe_load((KUBERNETES / "base" / "job-variables.yaml").read_text()))


def job(flow: str) -> Manifest:
    """The Kubernetes job that the worker makes of a run of a flow, by its own code."""
    from prefect.client.schemas.objects import Flow, FlowRun
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.utilities.asyncutils import run_coro_as_sync

    if str(PREFECT_KUBERNETES) not in sys.path:
        sys.path.append(str(PREFECT_KUBERNETES))
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    from flows.cluster_deployments import with_image

    run_id, flow_id = (UUID(f"00000000-0000-4000-8000-00000000000{n}") for n in (1, 2))
    # An address, so that Prefect starts no server of its own; nothing is asked of it.
    with temporary_settings({PREFECT_API_URL: "http://prefect-server:4200/api"}):
        made = KubernetesWorkerJobConfiguration.from_template_and_values(
            base_job_template=with_image(template(), IMAGE), values=dict(job_variables().get(flow, {}))
        )
        configuration = run_coro_as_sync(made)
        configuration.prepare_for_flow_run(
            FlowRun(id=run_id, flow_id=flow_id, name=f"{flow} flights"), flow=Flow(id=flow_id, name=flow)
        )
    manifest = dict(configuration.job_manifest)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    # The worker hands on the settings of its own process, which here is that of the tests.
    container["env"] = [one for one in container["env"] if not OF_THIS_PROCESS.fullmatch(one["name"])]
    return manifest


def golden() -> Iterator[tuple[Path, str]]:
    """(file, what it should hold) of everything that is rendered."""
    with tempfile.TemporaryDirectory() as folder:
        for overlay in OVERLAYS:
            yield GOLDEN / f"{overlay}.yaml", render(overlay, Path(folder))
    for flow in ("retrain", "score"):
        yield GOLDEN / f"job-{flow}.yaml", yaml.safe_dump(job(flow))


if __name__ == "__main__":
    # After a wanted change: write the files anew, and read what `git diff` says of them.
    for file, content in golden():
        file.write_text(content)
