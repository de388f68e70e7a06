"""What the lake knows goes online again: for an online store that has lost its rows."""

from __future__ import annotations

from dataclasses import dataclass

from features.lake import Lake
from features.newest import newest_rows
from features.store import OnlineWriter
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
    """

    view: str
    keys: int
    written: int


def materialize(online: OnlineWriter, lake: Lake, view: FeatureView) -> Materialized:
    """Write the newest row of every key of a view's lake table online, in bounded memory.

    Safe beside an ingest or a follower, and to be repeated: the store keeps what is newer.

    Args:
        online: the pipeline's online values.
        lake: the pipeline's lake.
        view: one of the pipeline's views.

    Returns:
        How many keys there are, and how many were written. Nothing in the lake: no key.

    Raises:
        UnreachableError: the online store does not answer. Some keys may have been written; run it again.
    """
    keys = written = 0
    for _, newest in newest_rows(lake, view):
        keys += newest.height
        written += sum(online.write(view, some) for some in newest.iter_slices(KEYS_A_WRITE))
    return Materialized(view.name, keys, written)
