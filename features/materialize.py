"""What the lake knows goes online again: for an online store that has lost its rows."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from features.built import not_of_rebuild, rebuilds_of
from features.lake import Lake
from features.newest import newest_rows
from features.store import OnlineWriter, view_table
from pipelines.spec import FeatureView

# Few, so that a follower beside it waits only a moment for SQLite's write lock.
KEYS_A_WRITE = 10_000


@dataclass(frozen=True)
class Materialized:
    """What was brought online of one view.

    Attributes:
        view: the view.
        keys: different keys in the lake.
        written: those that were written; of the others a newer row was online already.
        removed: keys that are no longer in the lake since a backfill, taken out of the store.
    """

    view: str
    keys: int
    written: int
    removed: int = 0


def materialize(online: OnlineWriter, lake: Lake, view: FeatureView) -> Materialized:
    """Write the newest row of every key of a view's lake table online, in bounded memory.

    Safe beside an ingest or a follower, and to be repeated: the store keeps what is newer.

    Args:
        online: the pipeline's online values.
        lake: the pipeline's lake.
        view: one of the pipeline's views.

    Returns:
        How many keys there are, how many were written, and how many were taken out. Nothing in the lake: no key.

    Raises:
        UnreachableError: the online store does not answer. Some keys may have been written; run it again.
    """
    keys = written = 0
    rebuilt = _rebuilds(lake, view) > 0
    for _, newest in newest_rows(lake, view):
        keys += newest.height
        written += sum(online.write(view, some) for some in newest.iter_slices(KEYS_A_WRITE))
    again, removed = _remove_outlived(online, lake, view) if rebuilt else (0, 0)
    # A key that another backfill writes meanwhile can be among both.
    return Materialized(view.name, keys, min(keys, written + again), removed)


def _rebuilds(lake: Lake, view: FeatureView) -> int:
    return rebuilds_of(lake.words(view_table(view)))


def _remove_outlived(online: OnlineWriter, lake: Lake, view: FeatureView) -> tuple[int, int]:
    """Take out what was online before a backfill and has no row in the lake any more.

    With another key, a key may be gone, or its newest row older than the one online, which is then kept from
    being written. So is one that a clock dated, as before perennial's rows were dated by their events, and in Feast's own
    stores. Rows of the stream are of the newest rebuild, or will be written again as such after its conflict.

    Returns:
        How many keys were written in their place, and how many have no row at all.
    """
    gone: list[str] = []
    for keys in online.keys(view):
        for start in range(0, len(keys), KEYS_A_WRITE):
            rows = online.read(view, keys[start : start + KEYS_A_WRITE])
            # Asked after the rows: another backfill may be at work, and what it wrote online was in the lake before.
            outlived = not_of_rebuild(rows, _rebuilds(lake, view))
            online.remove(view, outlived)
            gone.extend(outlived.get_column(view.entity))
    if not gone:
        return 0, 0
    names = pl.Series(gone, dtype=pl.String).unique()
    written = there = 0
    for _, newest in newest_rows(lake, view, pl.col(view.entity).is_in(names.implode())):
        there += newest.height
        written += sum(online.write(view, some) for some in newest.iter_slices(KEYS_A_WRITE))
    return written, len(names) - there
