from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path


def test_a_follower_warns_with_the_moment_in_utc_and_ends_with_the_sentence(tmp_path: Path, free_port: int) -> None:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "PREFECT_", "MLFLOW_"))}
    kafka = f"127.0.0.1:{free_port}"
    given = {"PERENNIAL_HOME": str(tmp_path), "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": kafka, "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-m", "perennial.cli", "ingest", "flights", "--follow"]
    with subprocess.Popen(command, env={**own, **given}, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr is not None
        warned = follower.stderr.readline()
        follower.send_signal(signal.SIGINT)
        _, rest = follower.communicate(timeout=60)
    at = datetime.strptime(warned[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=5)
    assert warned[19:].startswith(f" no Kafka broker answers at {kafka}")
    assert "going on from the lake's last commit in 0.5 s" in warned
    assert rest.splitlines()[-1].startswith(f"perennial: no Kafka broker answers at {kafka}")
    assert follower.returncode == 2
