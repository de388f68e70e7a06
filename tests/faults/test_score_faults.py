"""A score run that is killed, and two at once: nothing is lost, nothing is quarantined twice, and the alert is not left out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from judged_shop import aside, score, score_together, score_until, scored, visit

from flows import alert
from flows import score as flow
from perennial.errors import StageError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextmanager
def running(*runs: Any) -> Iterator[None]:
    """Processes that are over after the block, however it ends."""
    try:
        for run in runs:
            run.start()
        yield
    finally:
        for run in runs:
            if run.pid:
                run.kill()
                run.join()


def kill_at(step: str, home: Path, processes: Any, told: Path) -> None:
    process = processes.Process(target=score_until, args=(home, 2, step, told))
    with running(process):
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, step


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_a_stage_that_was_left_to_prefect_is_refused_instead_of_starting_a_server(home: Path) -> None:
    visit(home, 1, ann=10)
    before = children()
    # A kill of this process would leave the server behind.
    with pytest.raises(ValueError, match="No Prefect API URL provided"):
        score(home, 2, find_unscored=flow.find_unscored)
    score(home, 2, lasting=alert.lasting)
    assert scored(home) == ["ann"]
    assert children() <= before


@pytest.mark.parametrize("step", ["before quarantine", "after quarantine", "before predictions", "after predictions"])
def test_a_batch_that_passes_is_parted_once_however_often_it_is_killed(
    step: str, home: Path, processes: Any, tmp_path: Path
) -> None:
    visit(home, 1, ann=10, bob=20, cid=30, dan=40, eve=-5)
    kill_at(step, home, processes, tmp_path / "told")
    score(home, 3)
    score(home, 4)
    assert scored(home) == ["ann", "bob", "cid", "dan"]
    assert aside(home) == ["eve"]


@pytest.mark.parametrize("step", ["before quarantine", "after quarantine"])
def test_a_batch_that_fails_has_told_so_by_the_time_a_kill_can_meet_its_quarantine(
    step: str, home: Path, processes: Any, tmp_path: Path
) -> None:
    visit(home, 1, ann=10, bob=-1, cid=-2)
    told = tmp_path / "told"
    kill_at(step, home, processes, told)
    assert told.read_text() == "perennial.data.invalid\n"
    if aside(home):
        assert score(home, 3).scored_rows == 1
    else:
        with pytest.raises(StageError, match="none of 3 rows was scored"):
            score(home, 3)
        assert score(home, 4).scored_rows == 1
    assert scored(home) == ["ann"]
    assert aside(home) == ["bob", "cid"]


@pytest.mark.parametrize("bad", [{"eve": -5.0}, {"eve": -5.0, "fay": -6.0}])
def test_two_runs_that_judged_the_same_batch_quarantine_and_score_each_row_once(
    home: Path, processes: Any, bad: dict[str, float]
) -> None:
    visit(home, 1, ann=10, bob=20, cid=30, dan=40, **bad)
    meet = processes.Barrier(2)
    runs = [processes.Process(target=score_together, args=(home, 2, meet)) for _ in range(2)]
    with running(*runs):
        for run in runs:
            run.join(120)
            assert run.exitcode == 0
    score(home, 3)
    assert aside(home) == sorted(bad)
    assert scored(home) == ["ann", "bob", "cid", "dan"]
