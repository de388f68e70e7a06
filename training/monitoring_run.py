"""What monitoring found over time, in MLflow: one run for each champion version, with a chart for each metric."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from perennial.web_addresses import without_user
from training.mlflow_rest import Server, as_uri, copy_folder, key_values, log_metrics, now_ms, open_experiment

VERSION_TAG = "perennial.monitored_version"
NOTE_TAG = "mlflow.note.content"
LONGEST_NAME = 250
DIGEST_LETTERS = 8
HOUR_S = 3600


@dataclass(frozen=True)
class MonitoringRun:
    """The run that holds what monitoring found of one champion version.

    Attributes:
        experiment_id: MLflow's experiment, `<pipeline>-monitoring`.
        run_id: MLflow's run.
        artifacts: address of its artifact folder, as MLflow has it.
    """

    experiment_id: str
    run_id: str
    artifacts: str


def metric_name(group: str, column: str) -> str:
    """The name of a column's metric, such as `psi/distance`; different columns never share one.

    MLflow allows letters, digits, `_-./: ` and 250 characters, and takes `/` for a group of charts. A column that has
    anything else in its name gets `_` for it, and a digest of its name, or two such columns would be one.

    Args:
        group: what is measured, such as `psi`.
        column: name of the column.
    """
    room = LONGEST_NAME - len(group) - 1
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", column)
    if plain == column and 0 < len(plain) <= room and plain.strip("."):
        return f"{group}/{plain}"
    digest = hashlib.sha256(column.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LETTERS]
    return f"{group}/{plain[: room - DIGEST_LETTERS - 1]}-{digest}"


def log_monitoring(
    tracking_uri: str, pipeline: str, version: str, as_of: datetime, metrics: Mapping[str, float]
) -> MonitoringRun:
    """Add what one monitoring run found to the version's run.

    The same numbers of the same `as_of` are kept once, however often they are logged. Other numbers of the same moment
    stand beside the first: MLflow forgets nothing.

    Args:
        tracking_uri: http(s) address of the MLflow server.
        pipeline: name of the pipeline.
        version: the champion's version.
        as_of: clock of the monitoring run, UTC-aware.
        metrics: values by names as of `metric_name`; one that is not finite is left out, as nothing is known.

    Raises:
        UnreachableError: MLflow does not answer.
        StateError: MLflow refuses.
        UsageError: the address is of another kind, or no access.
    """
    known = {name: value for name, value in metrics.items() if abs(value) < float("inf")}
    with Server(tracking_uri) as server:
        run = _open(server, pipeline, version)
        # MLflow draws lines over steps: hours since the epoch keep the distances in time, and are the same in every run.
        log_metrics(server, run.run_id, known, int(as_of.timestamp() * 1000), int(as_of.timestamp()) // HOUR_S)
        server.call("POST", "runs/update", run_id=run.run_id, status="FINISHED", end_time=now_ms())
        return run


def open_monitoring_run(tracking_uri: str, pipeline: str, version: str) -> MonitoringRun:
    """The version's run, made where there is none; arguments and errors as in `log_monitoring`."""
    with Server(tracking_uri) as server:
        return _open(server, pipeline, version)


def attach(tracking_uri: str, run: MonitoringRun, folder: Path, path: str) -> str:
    """Copy the files of a folder to the run's artifacts; what is there of those names is replaced.

    Args:
        tracking_uri: http(s) address of the MLflow server.
        run: whose artifacts.
        folder: files, and no folders among them.
        path: where below the run's artifacts, such as `drift/20260108T000000Z`.

    Returns:
        The address of that folder in MLflow's pages.

    Raises:
        UsageError: this program cannot write to the artifact store.
        UnreachableError: the store does not answer.
    """
    copy_folder(folder, f"{as_uri(run.artifacts, tracking_uri)}/{path}")
    return (
        f"{without_user(tracking_uri).rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{path}"
    )


def _open(server: Server, pipeline: str, version: str) -> MonitoringRun:
    experiment_id = open_experiment(server, f"{pipeline}-monitoring")
    if not (found := _eldest(server, experiment_id, version)):
        note = (
            f"What monitoring found of {pipeline} while version {version} was its champion: metrics, and drift reports."
        )
        made = server.call(
            "POST",
            "runs/create",
            experiment_id=experiment_id,
            run_name=f"version {version}",
            start_time=now_ms(),
            tags=key_values({VERSION_TAG: version, NOTE_TAG: note}),
        )["run"]
        # Two monitors may both have found none. All of them take the eldest, and who made a younger one removes it.
        found = _eldest(server, experiment_id, version) or made
        if found["info"]["run_id"] != made["info"]["run_id"]:
            server.call("POST", "runs/delete", run_id=made["info"]["run_id"])
    return MonitoringRun(experiment_id, found["info"]["run_id"], found["info"]["artifact_uri"])


def _eldest(server: Server, experiment_id: str, version: str) -> dict[str, dict[str, str]]:
    """The version's run, the one begun first where there are several; empty where there is none."""
    runs = server.call(
        "POST",
        "runs/search",
        experiment_ids=[experiment_id],
        filter=f"tags.`{VERSION_TAG}` = '{version}'",
        order_by=["attributes.start_time ASC"],
        max_results=100,
    ).get("runs", [])
    return min(runs, key=lambda r: (int(r["info"]["start_time"]), r["info"]["run_id"]), default={})
