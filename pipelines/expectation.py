"""Why a line of a contract can be met by nothing, and so is a mistake."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.spec import Expectation


def flaw(expectation: Expectation) -> str | None:
    """What is wrong with a line, with the value and the mend; None where it can be met."""
    if not 0 < expectation.mostly <= 1:  # nan is not either
        return f"mostly is {expectation.mostly:g}; make it a share above 0 and at most 1, such as 0.99"
    match expectation.kind:
        case "between":
            return _bounds(expectation.minimum, expectation.maximum)
        case "in_set" if not expectation.values:
            return "in_set has no values; name those that are valid"
        case "matches":
            return _pattern(expectation.pattern)
    return None


def whole(pattern: str) -> str:
    """A pattern that only a whole value matches; `$` alone lets a line break pass."""
    return rf"\A(?:{pattern})\Z"


def _bounds(low: float | None, high: float | None) -> str | None:
    if low is None and high is None:
        return "between has neither a minimum nor a maximum; give it one"
    for bound, value in (("minimum", low), ("maximum", high)):
        if value is not None and math.isnan(value):
            return f"{bound} is {value:g}, which no value reaches; make it a number"
    if low is not None and high is not None and low > high:
        return f"minimum {low:g} is above maximum {high:g}, so no value is valid; swap or mend them"
    return None


def _pattern(pattern: str | None) -> str | None:
    if not pattern:
        return "matches has no pattern; give it a regular expression"
    try:
        re.compile(whole(pattern))
    except re.error as error:
        return f"the pattern {pattern!r} is no regular expression ({error}); mend it"
    return None
