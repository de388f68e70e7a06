"""Expected time and paid time of work that may be interrupted, against a simulation that knows no formula."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from perennial.cost.interruptions import Interruptions, expect

CASES = {
    "seldom": (Interruptions(0.05, 0.1, 0.1, 0.5), 4.0),
    "often": (Interruptions(0.9, 0.25, 0.2, 0.6), 3.1),
    "no checkpoint in time": (Interruptions(0.7, 0.0, 0.1, 5.0), 1.7),
    "starts that are interrupted themselves": (Interruptions(1.5, 0.5, 0.8, 0.25), 1.0),
}


def simulated(work_h: float, model: Interruptions, dice: random.Random) -> tuple[float, float, int]:
    """One run, minute by minute of its story: wall time, paid time, interruptions."""
    wall = paid = saved = 0.0
    count = 0
    while True:
        alive = dice.expovariate(model.rate_per_h)  # a node is bought, and lives so long
        left = alive - model.start_h
        while left > 0:
            stretch = min(model.checkpoint_h, work_h - saved)
            if left < stretch:
                break
            left -= stretch
            saved += stretch
            if math.isclose(saved, work_h):
                return wall + alive - left, paid + alive - left, count
        wall += alive + model.away_h
        paid += alive
        count += 1


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_the_mean_of_many_simulated_runs(case: str) -> None:
    model, work_h = CASES[case]
    dice = random.Random(7)
    runs = [simulated(work_h, model, dice) for _ in range(20_000)]
    expected = expect(work_h, model)
    for number, value in enumerate((expected.wall_h, expected.paid_h, expected.interruptions)):
        seen = [float(run[number]) for run in runs]
        error = stdev(seen) / math.sqrt(len(seen))
        assert abs(fmean(seen) - value) < 4 * error, (number, fmean(seen), value, error)
        assert error < 0.03 * value  # else the line before says little


def test_without_interruptions_there_is_one_start_and_the_work() -> None:
    model = Interruptions(0.0, 9.0, 0.1, 0.5)
    told = expect(2.0, model)
    assert (told.wall_h, told.paid_h, told.interruptions) == (2.1, 2.1, 0.0)


def test_hardly_any_interruptions_are_as_good_as_none() -> None:
    model = Interruptions(1e-9, 1.0, 0.1, 0.5)
    assert expect(2.3, model).wall_h == pytest.approx(2.4, rel=1e-6)


def test_more_interruptions_and_rarer_checkpoints_take_longer() -> None:
    model = Interruptions(0.2, 0.1, 0.1, 0.5)
    base = expect(3.0, model).paid_h
    assert expect(3.0, replace(model, rate_per_h=0.4)).paid_h > base
    assert expect(3.0, replace(model, checkpoint_h=1.5)).paid_h > base
    # Where nobody pays, only the clock runs on.
    longer_away = expect(3.0, replace(model, away_h=1.0))
    assert longer_away.paid_h == pytest.approx(base)
    assert longer_away.wall_h > expect(3.0, model).wall_h
