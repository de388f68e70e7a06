"""The one edge to MLflow: candidates become runs, runs become versions, versions get aliases.

Speaks MLflow's REST API 2.0 (https://mlflow.org/docs/latest/api_reference/rest-api.html) rather than importing
`mlflow`, which takes four seconds and 200 MB in every process that only asks who the champion is. Artifacts are written
straight to the run's artifact address, as MLflow's own client does when the server does not proxy them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from perennial.errors import StateError, UnreachableError, UsageError
from serving.predictor import BUNDLE_FILE

# MLflow's aliases of who serves, and of who is to.
CHAMPION, CHALLENGER = "champion", "challenger"
# Tags of a version: what its gate said, and which version it was held against there.
GATE, COMPARED_WITH = "gate", "gate.champion"
FINGERPRINT_TAG = "perennial.fingerprint"
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 3.0, 30.0
PARAMS_PER_CALL, METRICS_PER_CALL, LONGEST_VALUE = 100, 1000, 5000


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
    with _Server(tracking_uri) as server:
        existing = server.call(
            "GET", "model-versions/search", filter=f"name = '{name}' AND tags.`{FINGERPRINT_TAG}` = '{digest}'"
        )
        if found := existing.get("model_versions"):
            return _version(found[0])
        run = _open_run(server, name, digest, all_tags)
        run_id = run["info"]["run_id"]
        source = f"{_as_uri(run['info']['artifact_uri'], tracking_uri)}/bundle"
        if run["info"]["status"] != "FINISHED":
            _log(server, run_id, params, metrics)
            _copy(bundle_dir, source)
            server.call("POST", "runs/update", run_id=run_id, status="FINISHED", end_time=_now_ms())
        server.call("POST", "registered-models/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name)
        made = server.call(
            "POST", "model-versions/create", name=name, source=source, run_id=run_id, tags=_pairs(all_tags)
        )
        return _version(made["model_version"])


def set_alias(tracking_uri: str, name: str, alias: str, version: str) -> None:
    """Point an alias (`champion`, `challenger`) of a registered model to a version; takes it from the one that had it.

    Raises:
        StateError: there is no such model or version.
        UnreachableError: MLflow does not answer.
    """
    with _Server(tracking_uri) as server:
        server.call("POST", "registered-models/alias", name=name, alias=alias, version=version)


def delete_alias(tracking_uri: str, name: str, alias: str) -> None:
    """Take an alias away from a registered model; it need not be there.

    Raises:
        UnreachableError: MLflow does not answer.
    """
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    with _Server(tracking_uri) as server:
        server.call("DELETE", "registered-models/alias", accept=absent, name=name, alias=alias)


def get(tracking_uri: str, name: str, alias_or_version: str) -> ModelVersion | None:
    """The version a number or an alias means; None when there is none.

    Raises:
        UnreachableError: MLflow does not answer.
    """
    absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow answers the latter for an unknown alias
    with _Server(tracking_uri) as server:
        if alias_or_version.isdecimal():
            path, key = "model-versions/get", "version"
        else:
            path, key = "registered-models/alias", "alias"
        found = server.call("GET", path, accept=absent, name=name, **{key: alias_or_version}).get("model_version")
        return _version(found) if found else None


class _Server:
    """Calls to one MLflow server, with its refusals as perennial's errors."""

    def __init__(self, tracking_uri: str) -> None:
        import httpx

        if urlsplit(tracking_uri).scheme not in ("http", "https"):
            raise UsageError(
                f"MLFLOW_TRACKING_URI is {tracking_uri!r}; it must be the http(s) address of an MLflow server"
            )
        self.address = tracking_uri.rstrip("/")
        user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
        self.client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            auth=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
            headers={"Authorization": f"Bearer {token}"} if token and not user else None,
        )

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def call(self, method: str, path: str, accept: tuple[str, ...] = (), **arguments: Any) -> dict[str, Any]:
        """The answer of one call; empty when it is an error whose code is in `accept`."""
        import httpx

        url = f"{self.address}/api/2.0/mlflow/{path}"
        try:
            if method == "GET":
                response = self.client.get(url, params=arguments)
            else:
                response = self.client.request(method, url, json=arguments)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"MLflow does not answer at {self.address} ({type(error).__name__}); "
                "start it with `perennial up` or set MLFLOW_TRACKING_URI"
            ) from error
        try:
            answer = response.json()
        except ValueError:
            answer = {}
        if not isinstance(answer, dict):
            answer = {}
        if response.is_success:
            return answer
        code, message = answer.get("error_code", ""), answer.get("message", response.text[:200])
        if code in accept:
            return {}
        if response.status_code in (401, 403):
            raise UsageError(
                f"MLflow at {self.address} refuses access ({response.status_code}); "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if response.status_code >= 500 or not code:
            raise UnreachableError(
                f"{self.address} answered {path} with {response.status_code} and not as MLflow does; "
                f"see its log, or set MLFLOW_TRACKING_URI: {message}"
            )
        raise StateError(f"MLflow at {self.address} refused {path}: {message}")


def _open_run(server: _Server, name: str, digest: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The run of this bundle: one begun earlier, or a new one."""
    absent = ("RESOURCE_DOES_NOT_EXIST",)
    found = server.call("GET", "experiments/get-by-name", accept=absent, experiment_name=name).get("experiment")
    experiment_id = (
        found["experiment_id"] if found else server.call("POST", "experiments/create", name=name)["experiment_id"]
    )
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
        start_time=_now_ms(),
        tags=_pairs(tags),
    )
    return dict(created["run"])


def _log(server: _Server, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    now = _now_ms()
    values = [
        {"key": key, "value": value if math.isfinite(value) else _non_finite(value), "timestamp": now, "step": 0}
        for key, value in metrics.items()
    ]
    pairs = _pairs(params)
    for start in range(0, max(len(values), 1), METRICS_PER_CALL):
        server.call("POST", "runs/log-batch", run_id=run_id, metrics=values[start : start + METRICS_PER_CALL])
    for start in range(0, len(pairs), PARAMS_PER_CALL):
        server.call("POST", "runs/log-batch", run_id=run_id, params=pairs[start : start + PARAMS_PER_CALL])


def _non_finite(value: float) -> str:
    """The spelling of protobuf's JSON mapping, which MLflow reads; JSON itself has none."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value": str(value)[:LONGEST_VALUE]} for key, value in values.items()]


def _version(found: Mapping[str, Any]) -> ModelVersion:
    tags = {pair["key"]: pair["value"] for pair in found.get("tags", ())}
    return ModelVersion(str(found["version"]), found["source"], found.get("run_id", ""), tags)


def _as_uri(artifact_uri: str, tracking_uri: str) -> str:
    """The run's artifact folder as an address that anybody can open."""
    scheme = urlsplit(artifact_uri).scheme
    if scheme == "mlflow-artifacts":
        raise UsageError(
            f"MLflow at {tracking_uri} proxies artifacts ({artifact_uri}); start it with --no-serve-artifacts and a "
            "--default-artifact-root that this program and the scoring service can reach"
        )
    return artifact_uri.rstrip("/") if scheme else Path(artifact_uri).as_uri()


def _copy(bundle_dir: Path, target: str) -> None:
    try:
        if target.startswith("file:"):
            shutil.copytree(bundle_dir, Path(unquote(urlsplit(target).path)), dirs_exist_ok=True)
            return
        import fsspec

        filesystem, folder = fsspec.core.url_to_fs(target)
        for path in sorted(bundle_dir.iterdir()):
            filesystem.put_file(str(path), f"{folder}/{path.name}")
    except (ImportError, ValueError) as error:
        raise UsageError(f"artifacts cannot be written to {target}: {error}; s3:// needs `pip install s3fs`") from error
    except OSError as error:
        raise UnreachableError(f"artifacts cannot be written to {target}: {error}") from error


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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
