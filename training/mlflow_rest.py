"""The one edge to MLflow: its REST API, its runs' metrics, and its artifact stores.

Speaks MLflow's REST API 2.0 (https://mlflow.org/docs/latest/api_reference/rest-api.html) rather than importing
`mlflow`, which takes four seconds and 200 MB in every process that only asks who the champion is. Artifacts are written
straight to the run's artifact address, as MLflow's own client does when the server does not proxy them.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from perennial.errors import StateError, UnreachableError, UsageError
from perennial.web_addresses import user_of, without_user

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 3.0, 30.0
METRICS_PER_CALL, LONGEST_VALUE = 1000, 5000


class Server:
    """Calls to one MLflow server, with its refusals as perennial's errors."""

    def __init__(self, tracking_uri: str) -> None:
        import httpx

        # Of what follows, nothing but the client knows the password.
        self.address = without_user(tracking_uri).rstrip("/")
        if urlsplit(self.address).scheme not in ("http", "https"):
            raise UsageError(
                f"MLFLOW_TRACKING_URI is {self.address!r}; it must be the http(s) address of an MLflow server"
            )
        user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
        named = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else user_of(tracking_uri)
        self.client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            auth=named,
            headers={"Authorization": f"Bearer {token}"} if token and not named else None,
        )

    def __enter__(self) -> Server:
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
        except (httpx.TransportError, httpx.InvalidURL) as error:
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


def open_experiment(server: Server, name: str) -> str:
    """The id of the experiment of that name, made where there is none."""
    # Another process may make it between the question and the answer: then it is there the second time.
    for _ in range(2):
        absent = ("RESOURCE_DOES_NOT_EXIST",)
        found = server.call("GET", "experiments/get-by-name", accept=absent, experiment_name=name).get("experiment")
        if found:
            return str(found["experiment_id"])
        made = server.call("POST", "experiments/create", accept=("RESOURCE_ALREADY_EXISTS",), name=name)
        if made:
            return str(made["experiment_id"])
    raise StateError(f"MLflow's experiment {name!r} is neither there nor can it be made; restore it in MLflow")


def log_metrics(server: Server, run_id: str, metrics: Mapping[str, float], timestamp_ms: int, step: int) -> None:
    """Add one value of each metric to a run; NaN is kept as NaN, and what is logged twice is kept once.

    Args:
        server: where the run is.
        run_id: the run.
        metrics: values by name; names as MLflow allows them.
        timestamp_ms: of the values, milliseconds since the epoch.
        step: of the values.
    """
    values = [
        {"key": key, "value": _json_number(value), "timestamp": timestamp_ms, "step": step}
        for key, value in metrics.items()
    ]
    for start in range(0, len(values), METRICS_PER_CALL):
        server.call("POST", "runs/log-batch", run_id=run_id, metrics=values[start : start + METRICS_PER_CALL])


def as_uri(artifact_uri: str, tracking_uri: str) -> str:
    """The run's artifact folder as an address that anybody can open.

    Raises:
        UsageError: only the server itself can write there.
    """
    scheme = urlsplit(artifact_uri).scheme
    if scheme == "mlflow-artifacts":
        raise UsageError(
            f"MLflow at {without_user(tracking_uri)} proxies artifacts ({artifact_uri}); start it with "
            "--no-serve-artifacts and a --default-artifact-root that this program and the scoring service can reach"
        )
    return artifact_uri.rstrip("/") if scheme else Path(artifact_uri).as_uri()


def copy_folder(folder: Path, target: str) -> None:
    """Copy the files of a folder to a file:// or s3:// address, or one of any store that fsspec can write to.

    Raises:
        UsageError: the address is of a kind that cannot be written to.
        UnreachableError: the store does not answer, or refuses.
    """
    try:
        if target.startswith("file:"):
            shutil.copytree(folder, Path(unquote(urlsplit(target).path)), dirs_exist_ok=True)
            return
        if target.startswith("s3:"):
            from perennial.s3 import write_object

            for path in sorted(folder.iterdir()):
                write_object(path, f"{target.rstrip('/')}/{path.name}")
            return
        import fsspec

        filesystem, place = fsspec.core.url_to_fs(target)
        for path in sorted(folder.iterdir()):
            filesystem.put_file(str(path), f"{place}/{path.name}")
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"artifacts cannot be written to {target}: {error}; give MLflow a file:// or s3:// root"
        ) from error
    except OSError as error:
        raise UnreachableError(f"artifacts cannot be written to {target}: {error}") from error


def key_values(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tags or parameters as the API takes them."""
    return [{"key": key, "value": str(value)[:LONGEST_VALUE]} for key, value in values.items()]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _json_number(value: float) -> float | str:
    """NaN and the infinities in the spelling of protobuf's JSON mapping, which MLflow reads; JSON itself has none."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
