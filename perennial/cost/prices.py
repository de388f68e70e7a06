"""The table of prices: prices of AWS by region, and what is assumed of a retrain, each with its month and its source."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from perennial.errors import StateError

FILE = "perennial/cost/prices.csv"
COLUMNS = ("region", "item", "usd", "unit", "as_of", "source")
ANYWHERE = "any"
UNITS = ("hour", "month", "GB-month", "GB")
UNCHECKED = "(unchecked"
"""Words of a source that has no dated data behind it."""


@dataclass(frozen=True)
class Price:
    """One line of the table.

    Attributes:
        region: an AWS region, or `any` of what is assumed everywhere.
        item: what costs it, such as `ec2/g5.xlarge`.
        usd: US dollars a unit, without taxes; of `any`, the number that is assumed.
        unit: hour, month, GB-month, GB.
        as_of: the month in which it was so, such as 2025-01.
        source: where to look it up, and in which dated data it was found.
    """

    region: str
    item: str
    usd: float
    unit: str
    as_of: str
    source: str


class Prices:
    """Prices of one region."""

    def __init__(self, table: Mapping[tuple[str, str], Price], region: str) -> None:
        self.region = region
        self._table = table

    def get(self, item: str) -> Price | None:
        """The price of an item; None if the table has none."""
        return self._table.get((self.region, item))

    def assumed(self, item: str) -> float:
        """What is assumed everywhere.

        Raises:
            StateError: the table has no such line.
        """
        found = self._table.get((ANYWHERE, item))
        if found is None:
            raise StateError(f"{FILE} has no line {ANYWHERE},{item}; restore it from the repository")
        return found.usd

    def months(self) -> tuple[str, str] | None:
        """The oldest and the newest month of the region's prices; None if there are none."""
        found = sorted(price.as_of for price in self._own())
        return (found[0], found[-1]) if found else None

    def unchecked(self) -> tuple[int, int]:
        """How many of the region's prices were found in no dated data, and how many prices it has."""
        found = self._own()
        return sum(UNCHECKED in price.source for price in found), len(found)

    def _own(self) -> list[Price]:
        return [price for price in self._table.values() if price.region == self.region]


def how_to_add(region: str, item: str, unit: str = "hour") -> str:
    """The mend where a price is missing."""
    return f"add the line `{region},{item},USD,{unit},YYYY-MM,URL` to {FILE}"


def read_prices(region: str, file: Path | None = None) -> Prices:
    """The prices of a region, which may be none.

    Args:
        region: such as us-east-1.
        file: a table; None = the one that comes with perennial.

    Raises:
        StateError: the table cannot be read.
    """
    text = file.read_text("utf-8") if file else files("perennial.cost").joinpath("prices.csv").read_text("utf-8")
    rows = csv.reader(text.splitlines())
    if (columns := tuple(next(rows, ()))) != COLUMNS:
        raise StateError(f"{file or FILE} has the columns {', '.join(columns)}; they must be {', '.join(COLUMNS)}")
    table: dict[tuple[str, str], Price] = {}
    for number, row in enumerate(rows, start=2):
        price = _price(row)
        if price is None:
            raise StateError(
                f"line {number} of {file or FILE} is no price ({','.join(row)}); write {','.join(COLUMNS)} with a price above "
                f"0, a unit of {', '.join(UNITS)}, and a month YYYY-MM"
            )
        if (price.region, price.item) in table:
            raise StateError(f"line {number} of {file or FILE} repeats {price.region},{price.item}; keep one of them")
        table[price.region, price.item] = price
    return Prices(table, region)


def _price(row: list[str]) -> Price | None:
    """A line of the table; None if it is none."""
    try:
        region, item, usd, unit, as_of, source = row
        price = Price(region, item, float(usd), unit, as_of, source)
    except ValueError:
        return None
    fits = math.isfinite(price.usd) and price.usd > 0 and (unit in UNITS or region == ANYWHERE)
    return price if fits and re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", as_of) else None
