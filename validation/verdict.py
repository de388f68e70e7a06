"""The one verdict type: what a stage found out, in a sentence with numbers."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


class Status(enum.IntEnum):
    """How a check ended, best first, so that `max` is the worst.

    INCONCLUSIVE is what absence of data means: no rows, too few rows, NaN. It holds, then asks a person; it never passes.
    ERROR is a check that could not run. FAIL is a check that ran and found what it looks for.
    """

    PASS = 0
    INCONCLUSIVE = 1
    ERROR = 2
    FAIL = 3


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        status: PASS < INCONCLUSIVE < ERROR < FAIL.
        reason: one sentence with the numbers that decided.
        measurements: the numbers by name, units as suffixes.
    """

    status: Status
    reason: str
    measurements: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "measurements", MappingProxyType(dict(self.measurements)))

    @property
    def passed(self) -> bool:
        """Whether the check ran, had enough data, and found nothing."""
        return self.status is Status.PASS

    def as_dict(self) -> dict[str, object]:
        """The verdict as JSON-ready data; NaN and infinity become None, because JSON has neither."""
        return {
            "status": self.status.name,
            "reason": self.reason,
            "measurements": {k: (v if math.isfinite(v) else None) for k, v in self.measurements.items()},
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts, with the reasons of all that share its status.

    Args:
        verdicts: any number of verdicts.

    Returns:
        A verdict of the worst status there is; INCONCLUSIVE when there are none, because nothing was checked.
        Measurements are merged, the later of two with the same name wins.
    """
    found = list(verdicts)
    if not found:
        return Verdict(Status.INCONCLUSIVE, "nothing was checked")
    status = max(v.status for v in found)
    reasons = [v.reason for v in found if v.status is status]
    measurements = {name: value for v in found for name, value in v.measurements.items()}
    return Verdict(status, "; ".join(reasons), measurements)
