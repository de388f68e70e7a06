"""What every commit of a feature table says of its rows: by which definitions of the view, and in which rebuild, they were made.

A definition is changed in the pipeline's code, and only what is built from then on follows it, until a backfill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import polars as pl

from features import lineage
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.store import view_table
from pipelines.spec import FeatureView, PipelineSpec

DEFINITIONS, REBUILDS = "perennial.definitions", "perennial.rebuilds"
# Who made the rows of a table that is older than these words.
UNTOLD = "?"
# More microseconds than a window has events, which are what a row's created time is ahead of its event time.
A_REBUILD = timedelta(hours=1)


@dataclass(frozen=True)
class Built:
    """How the rows of a feature table came to be.

    Attributes:
        pipeline: the pipeline.
        view: the view.
        definition: fingerprint of its definition in the code that runs.
        known: fingerprints of the definitions that made the rows, or UNTOLD; none if there are no rows.
        rebuilds: how often all rows were built anew.
    """

    pipeline: str
    view: str
    definition: str
    known: frozenset[str] = frozenset()
    rebuilds: int = 0

    @property
    def words(self) -> dict[str, str]:
        """What a commit says."""
        return {DEFINITIONS: ",".join(sorted(self.known)), **({REBUILDS: str(self.rebuilds)} if self.rebuilds else {})}

    @property
    def still(self) -> Mapping[str, str | None]:
        """What the table must still say for rows of this rebuild to fit in."""
        return {REBUILDS: str(self.rebuilds) if self.rebuilds else None}

    @property
    def warning(self) -> str | None:
        """A sentence, if some rows were made by another definition; of rows that do not tell it, nothing is claimed."""
        if self.known <= {self.definition, UNTOLD}:
            return None
        return (
            f"some rows of {self.view} in the lake were built by another definition than the running code's; "
            f"`perennial features backfill {self.pipeline} --view {self.view}` builds them anew"
        )

    @property
    def unknown(self) -> str | None:
        """A sentence, if some rows do not tell what made them."""
        if UNTOLD not in self.known:
            return None
        return (
            f"which definition built the older rows of {self.view} in the lake is not known; "
            f"`perennial features backfill {self.pipeline} --view {self.view}` builds them by the code's"
        )

    def dated(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of `build_features`, newer than any row of an earlier rebuild with the same key and event time.

        The events in a row's longest window do not tell that: a window may have become shorter.
        """
        if not self.rebuilds:
            return rows
        return rows.with_columns(pl.col(CREATED_TIMESTAMP) + pl.lit(self.rebuilds * A_REBUILD))

    def holding(self, rows: pl.DataFrame) -> Built:
        """After rows of the code that runs were added."""
        return replace(self, known=self.known | {self.definition}) if rows.height else self

    def anew(self) -> Built:
        """After all rows were built anew."""
        return replace(self, known=frozenset({self.definition}), rebuilds=self.rebuilds + 1)


def not_of_rebuild(rows: pl.DataFrame, rebuilds: int) -> pl.DataFrame:
    """Those of some rows that were made in another rebuild, or whose created time is a clock's or not known.

    Args:
        rows: with `event_timestamp` and `created_timestamp`.
        rebuilds: how often the view's rows were built anew; none of the rows may be of a later rebuild.
    """
    ahead = pl.col(CREATED_TIMESTAMP) - pl.col(EVENT_TIMESTAMP)
    of_it = ahead.is_between(rebuilds * A_REBUILD, (rebuilds + 1) * A_REBUILD, closed="left")
    return rows.filter(~of_it.fill_null(value=False))


def rebuilds_of(words: Mapping[str, str]) -> int:
    """How often a table with these words was built anew."""
    return int(words.get(REBUILDS, "0"))


def read_built(lake: Lake, spec: PipelineSpec, view: FeatureView) -> Built:
    """What the newest commit of a view's table says; a table that is not there has no rows."""
    table = view_table(view)
    words = lake.words(table)
    told = words.get(DEFINITIONS)
    if told is None:
        told = UNTOLD if lake.rows(table) else ""
    known = frozenset(filter(None, told.split(",")))
    return Built(spec.name, view.name, lineage.definition(view), known, rebuilds_of(words))


def warnings(lake: Lake, spec: PipelineSpec) -> tuple[str, ...]:
    """A sentence for each view some of whose rows were made by another definition."""
    told = (read_built(lake, spec, view).warning for view in spec.views)
    return tuple(sentence for sentence in told if sentence)
