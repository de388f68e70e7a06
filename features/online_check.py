"""Is online what offline says? For every key of every view, the newest row of the lake against what the store holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.newest import newest_rows
from features.store import OnlineWriter
from perennial.settings import Settings
from perennial.wording import counted
from pipelines.spec import FeatureView, PipelineSpec
from validation.verdict import Status, Verdict

MISSING, OLDER, NEWER, DIFFERS, NOT_OFFLINE = KINDS = (
    "missing online",
    "older online",
    "newer online",
    "value differs",
    "not offline",
)
# What the lake's newest row, written online, puts right.
MENDABLE = frozenset({MISSING, OLDER, DIFFERS})
EXAMPLES = 5
KEYS_A_READ = 10_000
# An ingest at work writes online first and the lake a moment later, so a difference is looked at again after this.
AGAIN_AFTER_S = 5.0
# Two ways to add the same numbers up differ in the last bits of their mean.
RELATIVE, NEAR_ZERO = 1e-9, 1e-12
ONLINE = "_online"


@dataclass(frozen=True)
class Difference:
    """One key that is not the same online and offline.

    Attributes:
        key: the entity's key.
        kind: one of KINDS.
        offline_at: event time of the lake's newest row; None if there is none.
        online_at: event time of the store's row; None if there is none.
        feature: the first feature whose values differ, for `value differs` only.
        offline_value: its value in the lake.
        online_value: its value in the store.
    """

    key: str
    kind: str
    offline_at: datetime | None
    online_at: datetime | None
    feature: str | None = None
    offline_value: float | None = None
    online_value: float | None = None


@dataclass(frozen=True)
class ViewCheck:
    """What the check of one view found.

    Attributes:
        view: the view.
        keys: different keys that were looked at, offline and online.
        differences: number of keys by kind; a kind that was not found is not in it.
        examples: a few of them, of every kind that was found.
    """

    view: str
    keys: int
    differences: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Difference, ...] = ()

    @property
    def differing(self) -> int:
        """Number of keys that are not the same."""
        return sum(self.differences.values())

    @property
    def mendable(self) -> bool:
        """Whether some of them are put right by what the lake holds (features/materialize.py)."""
        return not MENDABLE.isdisjoint(self.differences)

    @property
    def verdict(self) -> Verdict:
        """PASS if all keys are the same, FAIL if some are not, INCONCLUSIVE if there are none."""
        numbers = {"keys": float(self.keys), "differing": float(self.differing)}
        if not self.keys:
            return Verdict(Status.INCONCLUSIVE, f"{self.view} has no key, online or offline", numbers)
        if not self.differences:
            return Verdict(
                Status.PASS, f"{self.view}: {counted(self.keys, 'key')}, online the same as offline", numbers
            )
        told = ", ".join(f"{count:,} {kind}" for kind, count in self.differences.items())
        return Verdict(Status.FAIL, f"{self.view}: of {counted(self.keys, 'key')} {told}", numbers)


def check_online(
    spec: PipelineSpec, settings: Settings, lake: Lake, again_after_s: float = AGAIN_AFTER_S
) -> tuple[ViewCheck, ...]:
    """Compare online with offline for every key of every view.

    Offline is the lake's newest row of a key, by event time, then by created time.

    Args:
        spec: the pipeline.
        settings: where the online store is.
        lake: the pipeline's lake.
        again_after_s: seconds after which keys that differ are looked at once more. A key counts only if it differs
            both times and its online row did not change in between: what an ingest is writing just now is no fault.

    Returns:
        One check a view, in order.

    Raises:
        UnreachableError: the online store does not answer.
    """
    store = OnlineWriter(spec, settings)
    looked = [(view, *_look(view, store, lake)) for view in spec.views]
    if any(differing.height for _, _, differing in looked):
        time.sleep(again_after_s)
    return tuple(
        _told(view, keys, _still(differing, view, store, lake) if differing.height else differing)
        for view, keys, differing in looked
    )


def compare(offline: pl.DataFrame, online: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    """The keys whose newest row offline is not their row online.

    Times are compared first, values only of rows of the same time. A created time that the store does not know is
    taken for the same. Values are the same if they differ by at most 1e-9 of the larger one, or 1e-12 near zero: a
    stream and a rebuild add in different orders, so their means differ in the last bits. Null equals only null, NaN only
    NaN, and infinity only itself.

    Args:
        offline: one row a key: the key, `event_timestamp`, `created_timestamp` and the view's features.
        online: the same of the store.
        view: the view.

    Returns:
        One row a key that differs, sorted by key: `key`, `kind`, `offline_at`, `online_at`, `online_created`, `feature`,
        `offline_value`, `online_value`.
    """
    at, online_at = pl.col(EVENT_TIMESTAMP), pl.col(EVENT_TIMESTAMP + ONLINE)
    created, online_created = pl.col(CREATED_TIMESTAMP), pl.col(CREATED_TIMESTAMP + ONLINE)
    names = [a.name for a in view.aggregates]
    first_differing = pl.coalesce(
        pl.lit(None, dtype=pl.String),
        *(pl.when(~_same(pl.col(n), pl.col(n + ONLINE))).then(pl.lit(n)) for n in names),
    )
    # Both sides have the columns, so that each gets its suffix; the key is one column.
    both = offline.join(online, on=view.entity, how="full", coalesce=True, suffix=ONLINE)
    kind = (
        pl.when(online_at.is_null())
        .then(pl.lit(MISSING))
        .when(at.is_null())
        .then(pl.lit(NOT_OFFLINE))
        .when((online_at < at) | ((online_at == at) & (online_created < created)))
        .then(pl.lit(OLDER))
        .when((online_at > at) | ((online_at == at) & (online_created > created)))
        .then(pl.lit(NEWER))
        .when(first_differing.is_not_null())
        .then(pl.lit(DIFFERS))
    )
    found = both.with_columns(kind.alias("kind"), first_differing.alias("feature")).filter(pl.col("kind").is_not_null())
    feature = pl.when(pl.col("kind") == DIFFERS).then(pl.col("feature"))

    def value(suffix: str) -> pl.Expr:
        picked = (pl.when(feature == n).then(pl.col(n + suffix)) for n in names)
        return pl.coalesce(pl.lit(None, dtype=pl.Float64), *picked)

    return found.select(
        pl.col(view.entity).alias("key"),
        "kind",
        at.alias("offline_at"),
        online_at.alias("online_at"),
        online_created.alias("online_created"),
        feature.alias("feature"),
        value("").alias("offline_value"),
        value(ONLINE).alias("online_value"),
    ).sort("key")


def _same(one: pl.Expr, other: pl.Expr) -> pl.Expr:
    close = one.is_close(other, rel_tol=RELATIVE, abs_tol=NEAR_ZERO)
    return one.eq_missing(other) | close.fill_null(False)


def _look(view: FeatureView, store: OnlineWriter, lake: Lake) -> tuple[int, pl.DataFrame]:
    """How many keys a view has, and those that differ now."""
    keys, first = 0, []
    for mine, newest in newest_rows(lake, view):
        offline = newest.get_column(view.entity)
        keys += newest.height
        for start in range(0, newest.height, KEYS_A_READ):
            some = newest.slice(start, KEYS_A_READ)
            first.append(compare(some, store.read(view, some.get_column(view.entity).to_list()), view))
        for batch in store.keys(view):
            told = pl.DataFrame({view.entity: batch}, schema={view.entity: pl.String}).unique().filter(mine)
            unknown = told.filter(~pl.col(view.entity).is_in(offline.implode())).get_column(view.entity)
            first.append(compare(newest.clear(), store.read(view, unknown.to_list()), view))
    if not first:
        return 0, pl.DataFrame({"key": []})
    # Redis may tell a key twice.
    differing = pl.concat(first).unique("key", maintain_order=True)
    keys += differing.filter(pl.col("kind") == NOT_OFFLINE).height
    return keys, differing


def _told(view: FeatureView, keys: int, differing: pl.DataFrame) -> ViewCheck:
    if not differing.height:
        return ViewCheck(view.name, keys)
    counts = Counter(differing.get_column("kind").to_list())
    few = differing.group_by("kind", maintain_order=True).head(EXAMPLES).drop("online_created")
    examples = sorted((Difference(**row) for row in few.iter_rows(named=True)), key=lambda d: KINDS.index(d.kind))
    return ViewCheck(view.name, keys, {kind: counts[kind] for kind in KINDS if counts[kind]}, tuple(examples))


def _still(differing: pl.DataFrame, view: FeatureView, store: OnlineWriter, lake: Lake) -> pl.DataFrame:
    """Those that differ now, too, and whose online row has not moved."""
    wanted = differing.get_column("key")
    online = pl.concat(
        store.read(view, wanted.slice(start, KEYS_A_READ).to_list()) for start in range(0, len(wanted), KEYS_A_READ)
    )
    # Offline second: what is online was on its way into the lake already.
    found = [
        compare(newest, online.filter(mine), view)
        for mine, newest in newest_rows(lake, view, pl.col(view.entity).is_in(wanted.implode()))
    ]
    place = ["key", "online_at", "online_created"]
    return pl.concat(found).join(differing.select(place), on=place, how="semi", nulls_equal=True)
