"""Alertmanager as infra/kubernetes has it: what Prometheus finds wrong reaches people by SNS, in words they can use."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from manifests import KUBERNETES, parse
from manifests import render as kustomize
from moto.server import ThreadedMotoServer

from perennial.ports import free_ports

pytestmark = pytest.mark.infra

WITHIN_S = 30
REGION = "us-east-1"
EXAMPLE = "arn:aws:sns:us-east-1:123456789012:perennial-alerts"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((KUBERNETES / "base" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.fixture(scope="module")
def rendered(kubectl: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return parse(kustomize("small", tmp_path_factory.mktemp("rendered")))


def file_of(rendered: list[dict[str, Any]], name: str) -> str:
    """A file of a rendered ConfigMap."""
    (text,) = [m["data"][name] for m in rendered if m["kind"] == "ConfigMap" and name in m["data"]]
    return str(text)


def amtool(*arguments: str | Path) -> str:
    if shutil.which("amtool") is None:
        pytest.skip("amtool is not installed (Debian: prometheus-alertmanager)")
    ran = subprocess.run(["amtool", *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_alertmanager_takes_its_configuration_and_sends_to_the_topic_of_terraform(
    rendered: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(file_of(rendered, "alertmanager.yml"))
    assert "SUCCESS" in amtool("check-config", file)
    told = yaml.safe_load(file.read_text())
    # The address comes from addresses.env, and nothing else of the file was changed with it.
    assert told["receivers"][0]["sns_configs"][0].pop("topic_arn") == EXAMPLE
    written = yaml.safe_load((KUBERNETES / "base" / "alertmanager.yml").read_text())
    written["receivers"][0]["sns_configs"][0].pop("topic_arn")
    assert told == written


def test_every_alert_goes_to_people_and_what_is_held_back_is_an_alert(
    rendered: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(file_of(rendered, "alertmanager.yml"))
    for name, rule in RULES.items():
        labels = [f"alertname={name}", f"severity={rule['labels']['severity']}"]
        assert amtool("config", "routes", "test", f"--config.file={file}", *labels).strip() == "people"
    inhibitions = yaml.safe_load(file.read_text())["inhibit_rules"]
    named = {
        name for rule in inhibitions for both in rule.values() for one in both for name in re.findall(r"[A-Z]\w+", one)
    }
    assert named <= RULES.keys()
    # What holds another back is at least as loud.
    for rule in inhibitions:
        (source,) = re.findall(r'"(\w+)"', rule["source_matchers"][0])
        assert RULES[source]["labels"]["severity"] == "critical"


@dataclass
class Mail:
    """Alertmanager, and the queue of somebody who has subscribed to the topic."""

    url: str
    sqs: Any
    queue: str
    log: Path

    def fire(self, name: str, began: datetime, ended: datetime | None = None, **labels: str) -> None:
        """What Prometheus tells Alertmanager when a rule holds, or does no more."""
        rule = RULES[name]
        alert = {
            "labels": {"alertname": name, "installation": "perennial", **rule["labels"], **labels},
            "annotations": {
                key: text.replace("{{ $labels.pipeline }}", labels.get("pipeline", ""))
                for key, text in rule["annotations"].items()
            },
            "startsAt": began.isoformat(),
            **({"endsAt": ended.isoformat()} if ended else {}),
        }
        httpx.post(f"{self.url}/api/v2/alerts", json=[alert], trust_env=False).raise_for_status()

    def next(self) -> tuple[str, str]:
        """(subject, text) of the next mail."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            got = self.sqs.receive_message(QueueUrl=self.queue, WaitTimeSeconds=1).get("Messages", [])
            for one in got:
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=one["ReceiptHandle"])
                told = json.loads(one["Body"])
                return told["Subject"], told["Message"]
        pytest.fail(f"no mail within {WITHIN_S} s\n{self.log.read_text()[-2000:]}")


@pytest.fixture
def mail(rendered: list[dict[str, Any]], tmp_path: Path) -> Iterator[Mail]:
    """Alertmanager with its rendered configuration, but for SNS' endpoint and times to wait."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("Alertmanager is not installed (Debian: prometheus-alertmanager)")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    aws.start()
    host, port = aws.get_host_and_port()
    keys = {"region_name": REGION, "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    sns, sqs = (boto3.client(name, endpoint_url=f"http://{host}:{port}", **keys) for name in ("sns", "sqs"))
    assert sns.create_topic(Name="perennial-alerts")["TopicArn"] == EXAMPLE
    queue = sqs.create_queue(QueueName="somebody")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=EXAMPLE, Protocol="sqs", Endpoint=arn)

    told = yaml.safe_load(file_of(rendered, "alertmanager.yml"))
    told["receivers"][0]["sns_configs"][0]["api_url"] = f"http://{host}:{port}"
    told["route"].update(group_wait="500ms", group_interval="500ms")
    file, log = tmp_path / "alertmanager.yml", tmp_path / "alertmanager.log"
    file.write_text(yaml.safe_dump(told))
    url = f"127.0.0.1:{free_ports().prefect}"
    (arguments,) = [
        m["spec"]["template"]["spec"]["containers"][0]["args"]
        for m in rendered
        if m["kind"] == "Deployment" and m["metadata"]["name"] == "alertmanager"
    ]
    own = {"--config.file": str(file), "--storage.path": str(tmp_path / "data")}
    given = [f"{name}={own.get(name, value)}" for name, _, value in (argument.partition("=") for argument in arguments)]
    # Region and keys come by the environment, as in the pod.
    environment = {"PATH": os.defpath, "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *given, f"--web.listen-address={url}"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + WITHIN_S
        while not ready(f"http://{url}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Mail(f"http://{url}", sqs, queue, log)
    finally:
        process.terminate()
        process.wait(30)
        aws.stop()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_mail_says_what_is_wrong_since_when_and_what_to_do(mail: Mail) -> None:
    began = datetime(2026, 3, 1, 4, 5, 30, tzinfo=UTC)
    mail.fire("NobodyAnswers", began)
    subject, text = mail.next()
    assert subject == "CRITICAL: NobodyAnswers (perennial)"
    assert text.splitlines() == [
        "No pod of the scoring service has answered for two minutes.",
        "Since: 2026-03-01 04:05 UTC",
        "What to do: kubectl -n perennial get pods -l app.kubernetes.io/name=scoring; then the logs of one.",
        "",
        "To look: kubectl -n perennial port-forward service/prometheus 9090, then http://localhost:9090/alerts",
        "To be told no more: kubectl -n perennial port-forward service/alertmanager 9093, then http://localhost:9093",
    ]
    mail.fire("NobodyAnswers", began, began + timedelta(minutes=20))
    subject, text = mail.next()
    assert subject == "OVER: NobodyAnswers (perennial)"
    assert text.splitlines()[0] == (
        "Over, from 2026-03-01 04:05 to 2026-03-01 04:25 UTC. "
        "It said: No pod of the scoring service has answered for two minutes."
    )


def test_what_follows_from_another_alert_is_not_told_beside_it(mail: Mail) -> None:
    now = datetime.now(UTC)
    mail.fire("NobodyAnswers", now)
    mail.next()
    mail.fire("ScoresAreMissing", now, pipeline="flights")
    mail.fire("ModelCannotBeLoaded", now, pipeline="flights", version="7")
    # Of two pipelines there are two mails, and a long name does not make the subject longer than SNS takes it.
    mail.fire("FeaturesAreOld", now, pipeline="flights")
    mail.fire("FeaturesAreOld", now, pipeline="a_" + "very_" * 12 + "long")
    subjects = {mail.next()[0] for _ in range(2)}
    assert subjects == {
        "WARNING: FeaturesAreOld of flights (perennial)",
        "WARNING: FeaturesAreOld of a_very_very_very_very_very_ver (perennial)",
    }
    assert all(len(subject) < 100 for subject in subjects)
    # It was held back and not lost: when its cause is over, it is told.
    mail.fire("NobodyAnswers", now, datetime.now(UTC))
    rest = {mail.next()[0] for _ in range(3)}
    assert rest == {
        "OVER: NobodyAnswers (perennial)",
        "CRITICAL: ScoresAreMissing of flights (perennial)",
        "WARNING: ModelCannotBeLoaded of flights (perennial)",
    }


def test_what_prometheus_finds_wrong_reaches_people(mail: Mail, rendered: list[dict[str, Any]], tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (Debian: prometheus)")
    told = yaml.safe_load(file_of(rendered, "prometheus.yml"))
    told["global"].update(evaluation_interval="1s")
    assert told["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    told["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [mail.url.removeprefix("http://")]}]
    # Nobody is there to be asked, so that whoever should answer is missing.
    told["scrape_configs"] = []
    rules = yaml.safe_load(file_of(rendered, "alerts.yml"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule.pop("for", None)
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    file, log = tmp_path / "prometheus.yml", tmp_path / "prometheus.log"
    file.write_text(yaml.safe_dump(told))
    own = [f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", "--web.listen-address=127.0.0.1:0"]
    # What is told before Prometheus knows whom to tell, it tells again.
    own.append("--rules.alert.resend-delay=1s")
    # Since version 3, which the pod has, it needs no telling.
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    expand = [] if re.search(r"version 3\.", version) else ["--enable-feature=expand-external-labels"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *own, *expand],
            env={"PATH": os.defpath, "CLUSTER_NAME": "perennial-dev"},
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        subjects = {mail.next()[0] for _ in range(3)}
    finally:
        process.terminate()
        process.wait(30)
    assert subjects == {
        "CRITICAL: NobodyAnswers (perennial-dev)",
        "CRITICAL: PrefectIsGone (perennial-dev)",
        "WARNING: FollowerIsGone (perennial-dev)",
    }, log.read_text()[-2000:]
