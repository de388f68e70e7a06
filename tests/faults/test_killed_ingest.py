from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shop import Place, Shop, assert_everything_counts_once, follow_to_the_end, take_in
from watched import STEP_BYTES, ingest_and_tell, ingest_until, process_of

# Read before the tests' environment is cleaned; `make soak` asks for more.
KILLS = int(os.environ.get("PERENNIAL_KILLS", "50"))
STEPS = [
    f"{when} {what}"
    for what in ("the commit of dead_letters", "the commit of events", "the online write", "the commit of features")
    for when in ("before", "after")
]


def test_an_ingest_killed_again_and_again_loses_and_doubles_nothing(
    place: Place, shop: Shop, chance: random.Random, processes: Any, tmp_path: Path
) -> None:
    steps: Counter[str] = Counter()
    with shop.sending(records=10, every_s=0.05):
        for number in range(KILLS):
            mode, file = ("follow", "micro-batch")[number % 2], tmp_path / f"step {number}"
            with process_of(processes, ingest_and_tell, place, mode, file) as process:
                process.join(chance.uniform(0.05, 1.5))
                assert process.exitcode is None, f"{mode} ended by itself"
                process.kill()
                process.join()
            at = file.read_bytes()[:STEP_BYTES].decode().strip() if file.exists() else ""
            steps[at or "starting"] += 1
    print(dict(steps), dict(shop.sent))
    assert all(shop.sent.values())
    assert steps["starting"] < KILLS / 2
    assert len(steps) >= 6, "the kills did not spread over the work"
    with process_of(processes, follow_to_the_end if chance.random() < 0.5 else take_in, place) as last:
        last.join(120)
        assert last.exitcode == 0
    assert_everything_counts_once(place)


@pytest.mark.parametrize("mode", ["micro-batch", "follow"])
@pytest.mark.parametrize("step", STEPS)
def test_an_ingest_killed_at_a_step_goes_on_from_what_was_committed(
    step: str, mode: str, place: Place, shop: Shop, processes: Any
) -> None:
    # Twice: before there is any table, and after.
    for _ in range(2):
        ready = processes.Event()
        if mode == "micro-batch":
            shop.send(150)
        with process_of(processes, ingest_until, place, mode, step, ready) as process:
            if mode == "follow":
                assert ready.wait(60)
                shop.send(150)
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
    shop.send(50)
    (take_in if mode == "micro-batch" else follow_to_the_end)(place)
    assert_everything_counts_once(place)
