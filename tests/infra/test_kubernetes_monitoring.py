"""Prometheus' configuration and alert rules, by Prometheus' own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import KUBERNETES

from features.metrics import StreamMetrics
from serving.metrics import Metrics
from validation.gauges import JOB

pytestmark = pytest.mark.infra

CONFIGURATION = KUBERNETES / "base" / "prometheus.yml"
RULES = KUBERNETES / "base" / "alerts.yml"


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    ran = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_prometheus_takes_its_configuration() -> None:
    assert "is valid prometheus config" in promtool("check", "config", CONFIGURATION)


def test_alerts_come_when_they_should_and_at_no_other_time(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path / "alerts.yml")
    shutil.copy(Path(__file__).with_name("alerts.test.yml"), tmp_path)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "alerts.test.yml")


def test_every_alert_says_what_is_wrong_and_the_mend() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) > 5
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "mend"}


def test_rules_ask_for_metrics_that_there_are() -> None:
    served = set(re.findall(r"^# TYPE (\w+)", Metrics().render().decode(), re.MULTILINE))
    source = Path(StreamMetrics.__init__.__code__.co_filename).read_text()
    router = Path(Metrics.__init__.__code__.co_filename).read_text()
    served |= set(re.findall(r'"(perennial_\w+)"', source + router))
    asked = set(
        re.findall(
            r"perennial_\w+\b(?!\")", "\n".join(re.findall(r"expr:(.*?)(?=\n        \w)", RULES.read_text(), re.DOTALL))
        )
    )
    assert len(asked) > 4
    for name in asked:
        assert {name, name.removesuffix("_bucket"), name.removesuffix("_total")} & served, name
    # Of what is pushed the Pushgateway tells when, by the name of who pushed.
    assert set(re.findall(r'push_time_seconds\{job="(\w+)"', RULES.read_text())) == {JOB}


def test_what_is_scraped_has_a_service_that_names_its_pods() -> None:
    services = {
        m["metadata"]["name"]: m["spec"]
        for file in (KUBERNETES / "base").glob("*.yaml")
        for m in yaml.safe_load_all(file.read_text())
        if isinstance(m, dict) and m.get("kind") == "Service"
    }
    jobs = yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]
    for job in jobs:
        for asked in job.get("dns_sd_configs", []):
            service = services[asked["names"][0].removesuffix(".perennial.svc.cluster.local")]
            assert service["clusterIP"] == "None"  # else there is one address for all pods
            assert service["ports"][0]["port"] == asked["port"]
        for targets in job.get("static_configs", []):
            name, port = targets["targets"][0].split(":")
            assert services[name]["ports"][0]["port"] == int(port)
