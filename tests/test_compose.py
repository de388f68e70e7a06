from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "compose.yaml").read_text())["configs"]


def test_prometheus_scrapes_the_scoring_service_and_the_follower(tmp_path: Path) -> None:
    content = CONFIGS["prometheus"]["content"]
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in yaml.safe_load(content)["scrape_configs"]}
    assert jobs == {"scoring": ["host.docker.internal:8000"], "follower": ["host.docker.internal:9109"]}
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool is installed")
    (tmp_path / "prometheus.yml").write_text(content)
    checked = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
