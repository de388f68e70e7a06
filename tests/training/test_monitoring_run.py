"""Metrics over time and reports in a real MLflow: one run a version, found again, whoever writes at once."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest

from perennial.errors import UnreachableError, UsageError
from training.mlflow_rest import Server, as_uri
from training.monitoring_run import LONGEST_NAME, attach, log_monitoring, metric_name, open_monitoring_run

AS_OF = datetime(2026, 1, 8, 3, 30, tzinfo=UTC)


def api(address: str, call: str, **parameters: Any) -> Any:
    return httpx.get(f"{address}/api/2.0/mlflow/{call}", params=parameters).raise_for_status().json()


def history(address: str, run_id: str, name: str) -> list[tuple[int, int, float]]:
    found = api(address, "metrics/get-history", run_id=run_id, metric_key=name)
    return [(m["step"], m["timestamp"], m["value"]) for m in found.get("metrics", [])]


def runs(address: str, experiment_id: str) -> list[dict[str, Any]]:
    found = httpx.post(f"{address}/api/2.0/mlflow/runs/search", json={"experiment_ids": [experiment_id]}).json()
    return list(found.get("runs", []))


def test_a_metric_has_a_point_for_each_moment_and_a_repeated_run_adds_none(mlflow_server: str) -> None:
    later = AS_OF + timedelta(hours=2)
    first = log_monitoring(mlflow_server, "charted", "7", AS_OF, {"psi/delay": 0.1, "auc": float("nan")})
    again = log_monitoring(mlflow_server, "charted", "7", AS_OF, {"psi/delay": 0.1})
    third = log_monitoring(mlflow_server, "charted", "7", later, {"psi/delay": 0.3, "auc": 0.7})
    assert first == again == third
    hour = 20_461 * 24 + 3  # 56 years of 365 days, 14 leap days and a week from 1970 to 2026-01-08
    ms = (20_461 * 86_400 + 3 * 3_600 + 1_800) * 1_000
    assert history(mlflow_server, first.run_id, "psi/delay") == [(hour, ms, 0.1), (hour + 2, ms + 7_200_000, 0.3)]
    assert history(mlflow_server, first.run_id, "auc") == [(hour + 2, ms + 7_200_000, 0.7)]
    (run,) = runs(mlflow_server, first.experiment_id)
    assert run["info"]["run_name"] == "version 7"
    assert run["info"]["status"] == "FINISHED"
    assert api(mlflow_server, "experiments/get", experiment_id=first.experiment_id)["experiment"]["name"] == (
        "charted-monitoring"
    )


def test_each_version_has_a_run_of_its_own(mlflow_server: str) -> None:
    one, two = (log_monitoring(mlflow_server, "versions", v, AS_OF, {"score_psi": 0.1}) for v in ("1", "2"))
    assert one.experiment_id == two.experiment_id
    assert {r["info"]["run_name"] for r in runs(mlflow_server, one.experiment_id)} == {"version 1", "version 2"}


def test_monitors_that_begin_at_once_end_in_one_run(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both, call = Barrier(2), Server.call

    def at_once(self: Server, method: str, path: str, accept: tuple[str, ...] = (), **arguments: Any) -> dict[str, Any]:
        if path in ("experiments/create", "runs/create"):
            both.wait(30)  # both have asked and found none
        return call(self, method, path, accept, **arguments)

    monkeypatch.setattr(Server, "call", at_once)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: open_monitoring_run(mlflow_server, "raced", "1"), range(2)))
    monkeypatch.undo()
    left = runs(mlflow_server, made[0].experiment_id)
    later = open_monitoring_run(mlflow_server, "raced", "1")
    assert later.run_id in {r["info"]["run_id"] for r in left}
    assert log_monitoring(mlflow_server, "raced", "1", AS_OF, {"auc": 0.7}) == later


@pytest.mark.parametrize(
    "column",
    ["plain", "two words", "a/b", "..", "", "Größe", "日本", "x" * 300, "x" * 299, "a%b", "a?b", "line\n", "-", " "],
)
def test_mlflow_takes_the_metric_of_any_column(mlflow_server: str, column: str) -> None:
    name = metric_name("missing_rate", column)
    assert len(name) <= LONGEST_NAME
    run = log_monitoring(mlflow_server, "named", "1", AS_OF, {name: 0.5})
    assert [value for *_, value in history(mlflow_server, run.run_id, name)] == [0.5]


def test_columns_that_differ_have_metrics_that_differ() -> None:
    columns = ["a b", "a_b", "a/b", "a%b", "", ".", "..", "x" * 300, "x" * 299, "日本", "本日"]
    assert len({metric_name("psi", c) for c in columns}) == len(columns)
    assert metric_name("psi", "dep_delay.mean-3h") == "psi/dep_delay.mean-3h"


def test_a_thousand_columns_are_logged(mlflow_server: str) -> None:
    metrics = {metric_name(group, f"column_{i}"): float(i) for i in range(1_000) for group in ("psi", "missing_rate")}
    run = log_monitoring(mlflow_server, "wide", "1", AS_OF, metrics)
    found = api(mlflow_server, "runs/get", run_id=run.run_id)["run"]["data"]["metrics"]
    assert {m["key"]: m["value"] for m in found} == metrics


def test_an_attached_folder_is_among_the_runs_artifacts_and_replaced_the_second_time(
    mlflow_server: str, tmp_path: Path
) -> None:
    run = open_monitoring_run(mlflow_server, "attached", "3")
    for content in ("first", "second"):
        (tmp_path / "drift.html").write_text(content)
        link = attach(mlflow_server, run, tmp_path, "drift/20260108T033000Z")
    assert link == (
        f"{mlflow_server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/drift/20260108T033000Z"
    )
    listed = api(mlflow_server, "artifacts/list", run_id=run.run_id, path="drift/20260108T033000Z")
    assert [f["path"] for f in listed["files"]] == ["drift/20260108T033000Z/drift.html"]
    got = httpx.get(
        f"{mlflow_server}/get-artifact",
        params={"run_uuid": run.run_id, "path": "drift/20260108T033000Z/drift.html"},
    )
    assert got.text == "second"


@pytest.fixture
def gate(mlflow_server: str) -> Iterator[str]:
    """host:port of a reverse proxy before the real MLflow, which lets nobody in but ann with her password."""
    wanted = "Basic " + base64.b64encode(b"ann:s3@cret").decode()

    class Gate(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on("GET")

        def do_POST(self) -> None:
            self.pass_on("POST")

        def pass_on(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != wanted:
                status, answer = 401, b"who are you?"
            else:
                kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                got = httpx.request(method, f"{mlflow_server}{self.path}", content=body, headers=kind)
                status, answer = got.status_code, got.content
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_user_in_the_address_signs_in_and_is_shown_to_nobody(
    gate: str, mlflow_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    address = f"http://ann:s3%40cret@{gate}/"
    log_monitoring(address, "gated", "1", AS_OF, {"psi": 0.3})
    run = open_monitoring_run(address, "gated", "1")
    assert [value for _, _, value in history(mlflow_server, run.run_id, "psi")] == [0.3]
    (tmp_path / "drift.html").write_text("drawn")
    link = attach(address, run, tmp_path, "drift")
    assert link == f"http://{gate}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/drift"
    assert "cret" not in caplog.text


def test_the_environments_user_comes_before_the_addresss(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3@cret")
    assert open_monitoring_run(f"http://bob:other@{gate}", "gated_too", "1").run_id


def test_no_refusal_repeats_the_password(gate: str, free_port: int) -> None:
    def refused(error: type[Exception], address: str) -> str:
        with pytest.raises(error) as caught:
            open_monitoring_run(address, "gated", "1")
        return str(caught.value)

    assert f"http://{gate} refuses access" in refused(UsageError, f"http://ann:s3cret@{gate}")
    told = [
        refused(UsageError, f"http://ann:s3cret@{gate}"),
        refused(UnreachableError, f"http://ann:s3cret@127.0.0.1:{free_port}"),
        refused(UnreachableError, "http://ann:s3cret@127.0.0.1:port"),
        refused(UsageError, "ann:s3cret@mlflow.example"),
        refused(UsageError, "ftp://ann:s3cret@mlflow.example"),
    ]
    with pytest.raises(UsageError) as caught:
        as_uri("mlflow-artifacts:/1", "http://ann:s3cret@mlflow.example")
    assert not [sentence for sentence in (*told, str(caught.value)) if "s3cret" in sentence or "ann" in sentence]
