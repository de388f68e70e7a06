from __future__ import annotations

import hashlib
import json
import math
import socket
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from perennial.errors import StateError, UnreachableError, UsageError
from training import registry
from training.mlflow_rest import as_uri
from training.registry import delete_alias, get, register, set_alias


def bundle(directory: Path, content: bytes, created: str = "2024-05-01") -> Path:
    """The registry looks at a bundle's files and never inside the model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(content)
    described = {"version": 1, "created": created, "model_sha256": hashlib.sha256(content).hexdigest()}
    (directory / "bundle.json").write_text(json.dumps(described))
    return directory


def enroll(address: str, name: str, directory: Path, **metrics: float) -> registry.ModelVersion:
    lineage = {"orders": 42}
    return register(address, name, directory, {"trees": 200}, metrics or {"auc": 0.7}, {"family": "lightgbm"}, lineage)


def run_of(address: str, run_id: str) -> dict[str, dict[str, object]]:
    run = httpx.get(f"{address}/api/2.0/mlflow/runs/get", params={"run_id": run_id}).json()["run"]
    return {
        "info": run["info"],
        **{part: {p["key"]: p["value"] for p in run["data"].get(part, [])} for part in ("params", "metrics", "tags")},
    }


def test_a_registered_bundle_can_be_read_back_from_its_uri(mlflow_server: str, tmp_path: Path) -> None:
    made = enroll(mlflow_server, "readable", bundle(tmp_path / "b", b"the model"))
    assert made.version == "1"
    assert made.uri.startswith("file:///")
    assert (Path(unquote(urlsplit(made.uri).path)) / "model.onnx").read_bytes() == b"the model"


def test_the_run_holds_params_metrics_and_lineage(mlflow_server: str, tmp_path: Path) -> None:
    made = enroll(mlflow_server, "logged", bundle(tmp_path / "b", b"m"), auc=0.75, log_loss=math.nan)
    run = run_of(mlflow_server, made.run_id)
    assert run["info"]["status"] == "FINISHED"
    assert run["params"] == {"trees": "200"}
    assert run["metrics"]["auc"] == 0.75
    assert math.isnan(float(str(run["metrics"]["log_loss"])))
    assert run["tags"]["lineage.orders"] == "42"
    assert run["tags"]["family"] == "lightgbm"


def test_mlflow_lists_the_bundle_among_the_runs_artifacts(mlflow_server: str, tmp_path: Path) -> None:
    made = enroll(mlflow_server, "listed", bundle(tmp_path / "b", b"m"))
    parameters = {"run_id": made.run_id, "path": "bundle"}
    listed = httpx.get(f"{mlflow_server}/api/2.0/mlflow/artifacts/list", params=parameters).json()
    assert {f["path"] for f in listed["files"]} == {"bundle/bundle.json", "bundle/model.onnx"}


def test_the_same_bundle_is_registered_once(mlflow_server: str, tmp_path: Path) -> None:
    first = enroll(mlflow_server, "once", bundle(tmp_path / "a", b"same", created="2024-05-01"))
    again = enroll(mlflow_server, "once", bundle(tmp_path / "b", b"same", created="2024-06-01"))
    other = enroll(mlflow_server, "once", bundle(tmp_path / "c", b"other"))
    assert again == first
    assert other.version == "2"
    assert other.run_id != first.run_id


def test_a_registration_cut_off_while_copying_goes_on_in_its_run(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = bundle(tmp_path / "b", b"m")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "copy_folder", cut_off)
        with pytest.raises(KeyboardInterrupt):
            enroll(mlflow_server, "cut", directory)
    assert get(mlflow_server, "cut", "1") is None
    made = enroll(mlflow_server, "cut", directory)
    assert made.version == "1"
    experiment = httpx.get(
        f"{mlflow_server}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "cut"}
    ).json()["experiment"]
    search = {"experiment_ids": [experiment["experiment_id"]]}
    runs = httpx.post(f"{mlflow_server}/api/2.0/mlflow/runs/search", json=search).json()["runs"]
    assert [r["info"]["run_id"] for r in runs] == [made.run_id]


def test_an_alias_moves_from_one_version_to_the_next(mlflow_server: str, tmp_path: Path) -> None:
    first = enroll(mlflow_server, "moved", bundle(tmp_path / "a", b"1"))
    second = enroll(mlflow_server, "moved", bundle(tmp_path / "b", b"2"))
    set_alias(mlflow_server, "moved", "champion", first.version)
    assert get(mlflow_server, "moved", "champion") == first
    set_alias(mlflow_server, "moved", "champion", second.version)
    assert get(mlflow_server, "moved", "champion") == second
    assert get(mlflow_server, "moved", "1") == first


@pytest.mark.parametrize(
    ("name", "which"), [("moved", "challenger"), ("moved", "99"), ("never", "champion"), ("never", "1")]
)
def test_what_is_not_there_is_none(mlflow_server: str, name: str, which: str) -> None:
    assert get(mlflow_server, name, which) is None


def test_an_alias_cannot_point_to_a_version_that_is_not_there(mlflow_server: str, tmp_path: Path) -> None:
    enroll(mlflow_server, "pointed", bundle(tmp_path / "a", b"1"))
    with pytest.raises(StateError, match="99"):
        set_alias(mlflow_server, "pointed", "champion", "99")


def test_a_half_written_bundle_is_not_registered(mlflow_server: str, tmp_path: Path) -> None:
    directory = bundle(tmp_path / "b", b"m")
    (directory / "bundle.json").unlink()
    with pytest.raises(StateError, match="not a finished model bundle"):
        enroll(mlflow_server, "half", directory)


def test_an_unreachable_server_is_told_quickly_and_by_its_setting(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        before = time.monotonic()
        with pytest.raises(UnreachableError, match=r"MLFLOW_TRACKING_URI") as caught:
            get(address, "any", "champion")
    assert address in str(caught.value)
    assert time.monotonic() - before < 5


def test_an_address_that_is_no_server_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sqlite:///x\.db"):
        get("sqlite:///x.db", "any", "champion")


def test_a_server_that_proxies_artifacts_is_refused() -> None:
    with pytest.raises(UsageError, match="--no-serve-artifacts"):
        as_uri("mlflow-artifacts:/1/abc/artifacts", "http://127.0.0.1:5000")


def test_a_deleted_alias_is_gone_and_can_be_deleted_again(mlflow_server: str, tmp_path: Path) -> None:
    made = enroll(mlflow_server, "deleted", bundle(tmp_path / "a", b"1"))
    set_alias(mlflow_server, "deleted", "challenger", made.version)
    for _ in range(2):
        delete_alias(mlflow_server, "deleted", "challenger")
        assert get(mlflow_server, "deleted", "challenger") is None
    assert get(mlflow_server, "deleted", made.version) == made
