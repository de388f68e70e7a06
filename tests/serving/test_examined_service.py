"""What `perennial doctor` says of a running scoring service."""

from __future__ import annotations

from pathlib import Path

from test_service import service as service  # a fixture
from test_service import wait_until

from perennial.doctor import servers
from perennial.settings import Settings
from validation.verdict import Status


def test_a_service_is_examined_as_it_comes_to_serve(service, serve, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, scoring_url=service)

    def status(pipeline: str | None) -> Status:
        return servers.scoring(settings, pipeline).verdict.status

    assert (status("toys"), status(None)) == (Status.INCONCLUSIVE, Status.INCONCLUSIVE)
    serve("1")
    wait_until(lambda: status("toys") is Status.PASS and status(None) is Status.PASS)
    assert "serves version 1 of toys" in servers.scoring(settings, "toys").verdict.reason
    unknown = servers.scoring(settings, "nobody").verdict
    assert unknown.status is Status.INCONCLUSIVE
    assert "unknown pipeline" in unknown.reason


def test_a_champion_that_cannot_be_loaded_fails(service, serve, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, scoring_url=service)
    serve("absent")
    wait_until(lambda: servers.scoring(settings, "toys").verdict.status is Status.FAIL)
    assert "absent" in servers.scoring(settings, "toys").verdict.reason


def test_a_service_that_is_not_there_fails(free_port: int, tmp_path: Path) -> None:
    found = servers.scoring(Settings(home=tmp_path, scoring_url=f"http://127.0.0.1:{free_port}"), None)
    assert found.verdict.status is Status.FAIL
    assert "PERENNIAL_SCORING_URL" in found.mend
