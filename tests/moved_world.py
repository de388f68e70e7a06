"""A reference and a window that has moved, with names from outside that nobody would choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipelines.spec import DriftPolicy, Feature
from validation.drift import DriftVerdict, detect_drift
from validation.profile import Profile, ReferenceProfile, build_reference, profile
from validation.windows import Window

EVIL = "<script>document.title='broken in'</script>"
FEATURES = (
    Feature(name="delay", kind="numeric"),
    Feature(name="carrier", kind="categorical"),
    Feature(name="steady", kind="numeric"),
)


@dataclass(frozen=True)
class World:
    """What a monitoring run has in hand."""

    before: pl.DataFrame
    now: pl.DataFrame
    reference: ReferenceProfile
    current: Profile
    drift: DriftVerdict


def rows(n: int, seed: int, moved: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    delay = np.where(rng.random(n) < 0.05 + 0.1 * moved, None, rng.normal(moved, 1, n))
    return pl.DataFrame(
        {
            "delay": pl.Series(delay.tolist(), dtype=pl.Float64),
            "carrier": rng.choice(
                ["AA", EVIL, "日本航空", "$x$"], n, p=[0.4 - 0.3 * moved, 0.1 + 0.3 * moved, 0.3, 0.2]
            ),
            "steady": rng.normal(size=n),
            "score": rng.random(n) ** (1 + moved),
        }
    )


def world(moved: float = 1.0, n: int = 3_000) -> World:
    before, now = rows(n, 1), rows(n, 2, moved)
    reference = build_reference(before, FEATURES, DriftPolicy())
    current = profile(now, reference)
    return World(before, now, reference, current, detect_drift(reference, [Window.of_rows(current)], DriftPolicy()))
