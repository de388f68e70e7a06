"""Candidates become runs of MLflow, runs become versions, versions get aliases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perennial.errors import StateError
from serving.predictor import BUNDLE_FILE
from training.mlflow_rest import Server, as_uri, copy_folder, key_values, log_metrics, now_ms, open_experiment

# MLflow's aliases of who serves, and of who is to.
CHAMPION, CHALLENGER = "champion", "challenger"
# Tags of a version: what its gate said, and which version it was held against there.
GATE, COMPARED_WITH = "gate", "gate.champion"
FINGERPRINT_TAG = "perennial.fingerprint"
PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class ModelVersion:
    """A registered model version.

    Attributes:
        version: MLflow's number, as text.
        uri: of its bundle, for `serving.predictor.load_predictor`.
        run_id: of the run that made it.
        tags: of the version.
    """

    version: str
    uri: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


def register(
    tracking_uri: str,
    name: str,
    bundle_dir: Path,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    lineage: Mapping[str, Any],
) -> ModelVersion:
    """Make a bundle a version of the registered model `name`, with a run of its own in the experiment of that name.

    Can be repeated: a bundle that is registered already (same contents but for its time of creation) gives the version
    it has, and a registration that was cut off goes on in the run it had begun.

    Args:
        tracking_uri: http(s) address of the MLflow server.
        name: of the pipeline; experiment and registered model have it too.
        bundle_dir: a finished bundle.
        params: of the run, such as the model spec.
        metrics: of the run; NaN is kept as NaN.
        tags: of run and version.
        lineage: what it was made from, such as lake snapshots; tags `lineage.<key>` of run and version.

    Raises:
        StateError: the bundle is half-written, or MLflow refuses.
        UnreachableError: MLflow or the artifact store does not answer.
        UsageError: an address of a kind that cannot be used, or no access.
    """
    digest = _fingerprint(bundle_dir)
    all_tags = {**tags, **{f"lineage.{key}": str(value) for key, value in lineage.items()}, FINGERPRINT_TAG: digest}
    with Server(tracking_uri) as server:
        existing = server.call(
            "GET", "model-versions/search", filter=f"name = '{name}' AND tags.`{FINGERPRINT_TAG}` = '{digest}'"
        )
        if found := existing.get("model_versions"):
            return _version(found[0])
        run = _open_run(server, name, digest, all_tags)
        run_id = run["info"]["run_id"]
        source = f"{as_uri(run['info']['artifact_uri'], tracking_uri)}/bundle"
        if run["info"]["status"] != "FINISHED":
            _log(server, run_id, params, metrics)
            copy_folder(bundle_dir, source)
            server.call("POST", "runs/update", run_id=run_id, status="FINISHED", end_time=now_ms())
        server.call("POST", "registered-models/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name)
        made = server.call(
            "POST", "model-versions/create", name=name, source=source, run_id=run_id, tags=key_values(all_tags)
        )
        return _version(made["model_version"])


def set_alias(tracking_uri: str, name: str, alias: str, version: str) -> None:
    """Point an alias (`champion`, `challenger`) of a registered model to a version; takes it from the one that had it.

    Raises:
        StateError: there is no such model or version.
        UnreachableError: MLflow does not answer.
    """
    with Server(tracking_uri) as server:
        server.call("POST", "registered-models/alias", name=name, alias=alias, version=version)


def delete_alias(tracking_uri: str, name: str, alias: str) -> None:
    """Take an alias away from a registered model; it need not be there.

    Raises:
        UnreachableError: MLflow does not answer.
    """
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    with Server(tracking_uri) as server:
        server.call("DELETE", "registered-models/alias", accept=absent, name=name, alias=alias)


def get(tracking_uri: str, name: str, alias_or_version: str) -> ModelVersion | None:
    """The version a number or an alias means; None when there is none.

    Raises:
        UnreachableError: MLflow does not answer.
    """
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow answers the latter for an unknown alias
    with Server(tracking_uri) as server:
        if alias_or_version.isdecimal():
            path, key = "model-versions/get", "version"
        else:
            path, key = "registered-models/alias", "alias"
        found = server.call("GET", path, accept=absent, name=name, **{key: alias_or_version}).get("model_version")
        return _version(found) if found else None


def _open_run(server: Server, name: str, digest: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The run of this bundle: one begun earlier, or a new one."""
    experiment_id = open_experiment(server, name)
    begun = server.call(
        "POST",
        "runs/search",
        experiment_ids=[experiment_id],
        filter=f"tags.`{FINGERPRINT_TAG}` = '{digest}'",
        max_results=1,
    ).get("runs")
    if begun:
        return dict(begun[0])
    created = server.call(
        "POST",
        "runs/create",
        experiment_id=experiment_id,
        run_name=f"{name}-{digest[:8]}",
        start_time=now_ms(),
        tags=key_values(tags),
    )
    return dict(created["run"])


def _log(server: Server, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    log_metrics(server, run_id, metrics, now_ms(), step=0)
    pairs = key_values(params)
    for start in range(0, len(pairs), PARAMS_PER_CALL):
        server.call("POST", "runs/log-batch", run_id=run_id, params=pairs[start : start + PARAMS_PER_CALL])


def _version(found: Mapping[str, Any]) -> ModelVersion:
    tags = {pair["key"]: pair["value"] for pair in found.get("tags", ())}
    return ModelVersion(str(found["version"]), found["source"], found.get("run_id", ""), tags)


def _fingerprint(bundle_dir: Path) -> str:
    """SHA-256 of the bundle's files, its time of creation left out."""
    try:
        description = json.loads((bundle_dir / BUNDLE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(f"{bundle_dir} is not a finished model bundle ({error}); export the model again") from error
    description.pop("created", None)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for path in sorted(bundle_dir.iterdir()):
        if path.name != BUNDLE_FILE:
            digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
