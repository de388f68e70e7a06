"""How long work takes on a node that may be taken away, and what of that time is paid.

The model. Interruptions come at random, independent of each other, at a constant rate (a Poisson process) while a node is
there. Work is saved after every stretch of `checkpoint_h`; an interruption takes back what was done since. Then there is no
node for `away_h`, which costs nothing; then the new one starts for `start_h` (boot, image, imports), which is paid and may be
interrupted as well. The two minutes' notice is not counted on, so that the figures err on the dear side. Writing a
checkpoint is taken to cost nothing: it is a file of some megabytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interruptions:
    """What is assumed of a node and of the work on it.

    Attributes:
        rate_per_h: interruptions an hour; 0 = never, as on demand.
        away_h: hours from an interruption until the next node is bought.
        start_h: hours from then until work goes on.
        checkpoint_h: hours of work between two checkpoints.
    """

    rate_per_h: float
    away_h: float
    start_h: float
    checkpoint_h: float


@dataclass(frozen=True)
class Expected:
    """What to expect.

    Attributes:
        wall_h: hours from the first node to the end, on average.
        paid_h: hours of them in which a node is paid.
        interruptions: how many there are, on average.
    """

    wall_h: float
    paid_h: float
    interruptions: float


def expect(work_h: float, model: Interruptions) -> Expected:
    """Expected time of `work_h` hours of work that are done in stretches between checkpoints.

    A stretch of s hours, after which its work is kept, takes on average

        E(s) = e^(rate * r) * (1/rate + d) * (e^(rate * s) - 1)

    with r the time of a start, which may be interrupted, and d the time without a node, which may not. For d = 0 it is the
    exact run time of J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
    Generation Computer Systems 22 (2006); with d it is in T. Herault and Y. Robert (eds.), Fault-Tolerance
    Techniques for High-Performance Computing, Springer 2015, chapter 1. The first start is a stretch of its own, after
    whose interruption nothing but itself has to be done again: r = 0 and s = start_h. Interruptions come at their rate
    while a node is there, so that there are rate * paid_h of them, and wall_h = paid_h + d * rate * paid_h.

    Args:
        work_h: hours of work, above 0.
        model: the rate and the times.
    """
    rate, start = model.rate_per_h, model.start_h
    if not rate:
        return Expected(start + work_h, start + work_h, 0.0)
    whole, rest = divmod(work_h, model.checkpoint_h)
    stretches = whole * math.expm1(rate * model.checkpoint_h) + math.expm1(rate * rest)
    paid = (math.expm1(rate * start) + math.exp(rate * start) * stretches) / rate
    return Expected(paid * (1 + rate * model.away_h), paid, rate * paid)
