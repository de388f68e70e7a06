"""Servers by HTTP: MLflow and its artifacts, Prefect, the scoring service, the Pushgateway; and where alerts go."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import httpx

from perennial.addresses import variable
from perennial.deploy import WORK_POOL
from perennial.doctor.findings import Finding, failed, passed, to_be_taken_back, unclear
from perennial.doctor.machine import writable
from perennial.doctor.stores import mend_of_s3, refusal
from perennial.doctor.stream import BEGIN_STACK, NO_STACK
from perennial.settings import Settings
from perennial.web_addresses import user_of, without_user
from perennial.wording import counted

ANSWER_S = 3.0
PROJECT = Path(__file__).parents[2]


def mlflow(settings: Settings) -> Finding:
    """Whether MLflow answers, and in which version."""
    answer = _get(settings, "mlflow_tracking_uri", "/version")
    if isinstance(answer, Finding):
        return answer
    there, ours = answer.text.strip(), metadata.version("mlflow")
    told = f"MLflow {there} at {without_user(settings.mlflow_tracking_uri)}"
    if not there[:1].isdigit():
        return failed(
            f"{without_user(settings.mlflow_tracking_uri)} answers, but not as MLflow", "see MLFLOW_TRACKING_URI"
        )
    if there.split(".")[:2] != ours.split(".")[:2]:
        return unclear(f"{told}; tried with {ours}", f"run the server with mlflow=={ours}, or mind what changed")
    return passed(told)


def artifacts(settings: Settings, pipeline: str | None) -> Finding:
    """Whether models can be written to where MLflow keeps them, from here."""
    from training.mlflow_rest import Server, as_uri

    reached = _get(settings, "mlflow_tracking_uri", "/health")
    if isinstance(reached, Finding):
        return unclear("MLflow, which knows where, does not answer", "see above")
    absent = ("RESOURCE_DOES_NOT_EXIST",)
    with Server(settings.mlflow_tracking_uri) as server:
        own = server.call("GET", "experiments/get-by-name", absent, experiment_name=pipeline or "Default")
        told = own or server.call("GET", "experiments/get", experiment_id="0")
    root = as_uri(told["experiment"]["artifact_location"], settings.mlflow_tracking_uri)
    parts = urlsplit(root)
    if parts.scheme == "file":
        why = writable(Path(unquote(parts.path)))
        mend = "run where that folder is, or give MLflow an s3:// --default-artifact-root"
        return failed(f"models are kept at {root}: {why}", mend) if why else passed(f"{root} can be written to")
    if parts.scheme == "s3":
        return try_bucket(parts.netloc, parts.path.strip("/"))
    return unclear(f"models are kept at {root}, which is not looked into here", "retrain once to see")


def checkpoints(settings: Settings) -> Finding:
    """Whether a fit can keep its progress where the settings say, from here."""
    parts = urlsplit(settings.checkpoints)
    if parts.scheme == "s3":
        return try_bucket(parts.netloc, parts.path.strip("/"))
    if "://" in settings.checkpoints:
        return failed(f"fits keep no progress at {parts.scheme}://", "set PERENNIAL_CHECKPOINTS to an s3:// address")
    why = writable(Path(settings.checkpoints).absolute())
    mend = "mend its permissions, or set PERENNIAL_CHECKPOINTS to an s3:// address"
    return failed(why, mend) if why else passed(f"{settings.checkpoints} can be written to")


def try_bucket(bucket: str, prefix: str) -> Finding:
    """Whether objects can be written, read and deleted below a prefix, by the credentials of this process."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    where, key = f"s3://{bucket}/{prefix}", f"{prefix}/perennial-doctor-{uuid4()}".lstrip("/")
    quick = Config(connect_timeout=2, read_timeout=ANSWER_S, retries={"total_max_attempts": 1})
    left = False
    try:
        client = boto3.Session().client("s3", config=quick)
        version = client.put_object(Bucket=bucket, Key=key, Body=b"perennial doctor").get("VersionId")
        left = True
        with to_be_taken_back():
            try:
                client.get_object(Bucket=bucket, Key=key)["Body"].read()
            finally:
                _delete(client, bucket, key, version)
                left = False
    except (BotoCoreError, ClientError, ValueError) as error:
        stays = f"; {key} is left there" if left else ""
        mend = mend_of_s3(str(error), "see the bucket's name, the network, and AWS_ENDPOINT_URL")
        return failed(f"{where}: {refusal(str(error))}{stays}", mend)
    return passed(f"{where} is written, read and deleted")


def _delete(client: Any, bucket: str, key: str, version: str | None) -> None:
    """Without a trace where that is allowed; else a version stays that the bucket's lifecycle takes away."""
    from botocore.exceptions import ClientError

    try:
        client.delete_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))
    except ClientError:
        if not version:
            raise
        client.delete_object(Bucket=bucket, Key=key)


def prefect(settings: Settings) -> Finding:
    """Whether Prefect's server answers, in the version of the client here."""
    answer = _get(settings, "prefect_api_url", "/admin/version")
    if isinstance(answer, Finding):
        return answer
    there, ours = str(_json(answer)), metadata.version("prefect")
    address = without_user(settings.prefect_api_url)
    if not there[:1].isdigit():
        return failed(f"{address} answers, but not as Prefect", "PREFECT_API_URL ends with /api")
    if there != ours:
        mend = f"install prefect=={there} here, or {ours} there: workers and server must agree"
        return failed(f"Prefect {there} at {address}, and {ours} here", mend)
    return passed(f"Prefect {there} at {address}")


def work_pool(settings: Settings) -> Finding:
    """Whether the work pool is there and a worker takes its runs."""
    reached = _get(settings, "prefect_api_url", "/health")  # a 404 of something else says nothing of work pools
    if isinstance(reached, Finding):
        return reached
    answer = _get(settings, "prefect_api_url", f"/work_pools/{WORK_POOL}", accept=(404,))
    if isinstance(answer, Finding):
        return answer
    begin = "`perennial up` makes it on this computer, infra/kubernetes in a cluster"
    if answer.status_code == 404:
        return failed(f"there is no work pool {WORK_POOL!r}, so no flow is run", begin)
    pool = _json(answer)
    told = f"work pool {WORK_POOL!r} of type {pool.get('type')}"
    if pool.get("is_paused"):
        return failed(f"{told} is paused", f"prefect work-pool resume {WORK_POOL}")
    workers = _post(settings, f"/work_pools/{WORK_POOL}/workers/filter", {})
    if isinstance(workers, Finding):
        return workers
    online = [worker for worker in workers if worker.get("status") == "ONLINE"]
    if not online:
        gone = f", of {counted(len(workers), 'worker')} none is online" if workers else " has no worker"
        return failed(f"{told}{gone}: flows wait", begin, online=0)
    return passed(f"{told}, {counted(len(online), 'worker')} online", online=len(online))


def deployments(settings: Settings, pipeline: str) -> Finding:
    """Whether every flow of the pipeline is deployed and its schedules are on."""
    reached = _get(settings, "prefect_api_url", "/health")
    if isinstance(reached, Finding):
        return reached
    found = _post(settings, "/deployments/filter", {"deployments": {"tags": {"all_": ["perennial", pipeline]}}})
    if isinstance(found, Finding):
        return found
    by_flow = {_flow(row.get("entrypoint") or ""): row for row in found}
    wanted = _wanted(pipeline)
    if missing := sorted(set(wanted) - by_flow.keys()):
        return failed(
            f"not deployed: {', '.join(missing)}", "prefect deploy --all, or `perennial up`", missing=len(missing)
        )
    if not by_flow:
        return failed(
            f"{pipeline} has no deployments", f"`perennial init {pipeline}` writes them; then prefect deploy --all"
        )
    off = sorted(
        flow
        for flow, row in by_flow.items()
        if row.get("paused") or (wanted.get(flow) and not any(s.get("active") for s in row.get("schedules", ())))
    )
    if off:
        return unclear(f"off: {', '.join(off)}", "resume them in Prefect's pages, if nobody meant it", off=len(off))
    return passed(f"{counted(len(by_flow), 'deployment')}, every schedule is on", deployments=len(by_flow))


def _wanted(pipeline: str) -> dict[str, bool]:
    """The pipeline's flows in prefect.yaml, and whether each has a schedule; nothing where the file is not here."""
    import yaml

    try:
        told = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
        own = [one for one in told if one["parameters"]["pipeline"] == pipeline]
        return {_flow(one["entrypoint"]): bool(one.get("schedules")) for one in own}
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return {}


def _flow(entrypoint: str) -> str:
    return entrypoint.replace(":", ".").rpartition(".")[2]


def scoring(settings: Settings, pipeline: str | None) -> Finding:
    """Whether the scoring service answers, and for the pipeline serves a champion."""
    answer = _get(settings, "scoring_url", "/health")
    if isinstance(answer, Finding):
        return answer
    address = without_user(settings.scoring_url)
    if pipeline is None:
        ready = _get(settings, "scoring_url", "/ready", accept=(503,))
        if isinstance(ready, Finding):
            return ready
        told = _json(ready)
        if ready.is_success:
            return passed(f"{address} is ready for {', '.join(told['pipelines'])}")
        return unclear(
            f"{address} is up, and not ready: {told.get('detail')}", "release a model: perennial retrain PIPELINE"
        )
    serving = _get(settings, "scoring_url", f"/v1/{pipeline}/serving", accept=(404, 409, 422, 500, 503))
    if isinstance(serving, Finding):
        return serving
    if not serving.is_success:
        detail = _json(serving).get("detail", serving.status_code)
        return unclear(f"{address} serves no {pipeline}: {detail}", f"release a model: perennial retrain {pipeline}")
    told = _json(serving)
    if problem := told.get("problem"):
        return failed(
            f"{address}: {problem}", f"see its log; `perennial rollback {pipeline}` returns to the version before"
        )
    champion = (told.get("champion") or {}).get("version")
    if champion is None:
        return unclear(f"{address} has no champion of {pipeline}", f"release a model: perennial retrain {pipeline}")
    return passed(f"{address} serves version {champion} of {pipeline}")


def pushgateway(settings: Settings) -> Finding:
    """Whether the Pushgateway is ready."""
    answer = _get(settings, "pushgateway_url", "/-/ready")
    if isinstance(answer, Finding):
        return answer
    return passed(f"ready at {without_user(settings.pushgateway_url)}")


def alerts(settings: Settings) -> Finding:
    """Whether every alert URL can be used; nothing is sent."""
    from validation.notify import open_targets, split_urls

    urls = split_urls(settings.alert_urls.get_secret_value())
    if not urls:
        mend = "set PERENNIAL_ALERT_URLS, or fill Prefect's Secret block; then try `perennial alerts test`"
        return unclear("PERENNIAL_ALERT_URLS has no target", mend)
    targets, mistakes = open_targets(urls)
    if mistakes:
        return failed("; ".join(mistake.what for mistake in mistakes), "", mistakes=len(mistakes))
    return passed(f"{counted(len(targets), 'target')}: {', '.join(t.name for t in targets)}", targets=len(targets))


def _get(settings: Settings, field: str, path: str, accept: tuple[int, ...] = ()) -> httpx.Response | Finding:
    """The answer of a server; or what is to be said where there is none."""
    return _answer(settings, field, "GET", path, accept=accept)


def _post(settings: Settings, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]] | Finding:
    """Rows that Prefect answers; or what is to be said where it does not."""
    answer = _answer(settings, "prefect_api_url", "POST", path, dict(body))
    if isinstance(answer, Finding):
        return answer
    rows = _json(answer)
    if not isinstance(rows, list):
        return failed(f"{without_user(settings.prefect_api_url)} answers, but not as Prefect", "see PREFECT_API_URL")
    return rows


def _answer(
    settings: Settings, field: str, method: str, path: str, body: Any = None, accept: tuple[int, ...] = ()
) -> httpx.Response | Finding:
    url = getattr(settings, field)
    address, name = without_user(url).rstrip("/"), variable(field)
    signed = _signed(field, url)
    try:
        answer = httpx.request(
            method, f"{address}{path}", json=body, headers=signed, timeout=ANSWER_S, follow_redirects=True
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if field not in settings.model_fields_set:
            return unclear(NO_STACK, BEGIN_STACK.format(name))
        return failed(f"nobody answers at {address} ({type(error).__name__})", f"start it, or mend {name}")
    if answer.status_code in (401, 403):
        return failed(
            f"{address} refuses this user ({answer.status_code})", f"put USER:PASSWORD@ into {name}, or mend it"
        )
    if not answer.is_success and answer.status_code not in accept:
        return failed(
            f"{address}{path} answers {answer.status_code}", f"see its log, and whether {name} is its address"
        )
    return answer


def _signed(field: str, url: str) -> dict[str, str]:
    """How each server is told who asks, as its own client does."""
    user = user_of(url)
    basic = f"{user[0]}:{user[1]}" if user else ""
    if field == "prefect_api_url":
        if key := os.environ.get("PREFECT_API_KEY"):
            return {"Authorization": f"Bearer {key}"}
        basic = basic or os.environ.get("PREFECT_API_AUTH_STRING", "")
    if field == "mlflow_tracking_uri" and (name := os.environ.get("MLFLOW_TRACKING_USERNAME")):
        basic = f"{name}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {base64.b64encode(basic.encode()).decode()}"} if basic else {}


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return {}
