"""Counts of a window on bins frozen with the reference; counts add up, so a window of any length is a sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from perennial.errors import StateError, UsageError
from pipelines.spec import DriftPolicy, Feature
from validation.bins import VOID, Counts, FeatureBins, FeatureCounts, Kind, bins_of
from validation.hours import DAY_H, HourlyProfiles, hours_of

SCORE = "score"
"""The column of the model's scores, profiled as one more numeric feature."""

VERSION = 2

_KINDS: Mapping[str, Kind] = {"numeric": "numeric", "categorical": "categorical"}


@dataclass(frozen=True, eq=False)
class Profile:
    """How many rows of a window fell into each bin of a reference.

    Attributes:
        reference: fingerprint of the reference whose bins these are.
        counts: int64 counts, read only; the reference says which stretch belongs to which feature.
    """

    reference: str
    counts: Counts

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.int64)
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        return self.reference == other.reference and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.reference, self.counts.tobytes()))


@dataclass(frozen=True)
class ReferenceProfile:
    """What a champion was trained on: frozen bins of each feature, and the reference's own counts on them.

    Attributes:
        features: bins of each feature and of the score.
        counts: the reference's counts, the features' bins one after the other.
        hours: the same by hour; without them rows are taken to be independent.

    Raises:
        StateError: the hours are of other bins, or do not add up to the counts.
    """

    features: tuple[FeatureBins, ...]
    counts: tuple[int, ...]
    hours: HourlyProfiles | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.hours is None:
            return
        sums = self.hours.counts.sum(axis=0).tolist() if self.hours.hours.size else [0] * len(self.counts)
        if self.hours.reference != self.fingerprint or sums != list(self.counts):
            raise StateError(
                f"the hours of a reference profile do not add up to its counts on the bins {self.fingerprint}; "
                "retrain, or release a model that has those of its own."
            )

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the bins: profiles with different fingerprints never add up."""
        told = [[b.feature, b.kind, b.edges, b.categories, b.others] for b in self.features]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @cached_property
    def starts(self) -> Mapping[str, int]:
        """Where each feature's bins start in a profile's counts."""
        ends = np.cumsum([len(b.labels) for b in self.features]).tolist()
        return dict(zip((b.feature for b in self.features), [0, *ends], strict=False))

    @property
    def profile(self) -> Profile:
        """The reference's own counts."""
        return Profile(self.fingerprint, np.array(self.counts, dtype=np.int64))

    def of(self, profile: Profile, feature: str) -> FeatureCounts:
        """One feature's counts; UsageError when the profile was counted on other bins, KeyError for another feature."""
        _same_bins(self.fingerprint, profile)
        start, bins = self.starts[feature], next(b for b in self.features if b.feature == feature)
        counts = profile.counts[start : start + len(bins.labels)]
        missing, absent, unreadable = (int(n) for n in counts[-len(VOID) :])
        return FeatureCounts(counts[: -len(VOID)], missing, absent, unreadable)

    def rows(self, profile: Profile) -> int:
        """How many rows a profile counted."""
        return self.of(profile, self.features[0].feature).rows

    def to_json(self) -> str:
        """The profile without its hours as JSON, as it travels with the model."""
        features = [
            {"feature": b.feature, "kind": b.kind, "edges": b.edges, "categories": b.categories, "others": b.others}
            for b in self.features
        ]
        return json.dumps({"version": VERSION, "features": features, "counts": self.counts}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> ReferenceProfile:
        """The profile that `to_json` wrote; StateError when it is not one, or of another version."""
        mend = "retrain, or release a model that carries its reference profile"
        try:
            told = json.loads(text)
            if told["version"] != VERSION:
                raise StateError(f"reference profile has version {told['version']!r}, expected {VERSION}; {mend}.")
            bins = tuple(
                FeatureBins(
                    feature=b["feature"],
                    kind=_KINDS[b["kind"]],
                    edges=tuple(float(e) for e in b["edges"]),
                    categories=tuple(b["categories"]),
                    others=tuple(b["others"]),
                )
                for b in told["features"]
            )
            found = ReferenceProfile(bins, tuple(int(n) for n in told["counts"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"cannot read a reference profile from {text[:60]!r} ({error!r}); {mend}.") from error
        if len(found.counts) != sum(len(b.labels) for b in bins) or not bins:
            raise StateError(f"reference profile has {len(found.counts)} counts, which do not fit its bins; {mend}.")
        return found


def build_reference(
    frame: pl.DataFrame,
    features: Sequence[Feature],
    policy: DriftPolicy,
    *,
    extra: Sequence[str] = (SCORE,),
    timestamp_column: str | None = None,
) -> ReferenceProfile:
    """Freeze the bins on the reference data and count it.

    A rare category that occurs on one day only is counted as unseen where it occurs: had that day not been in the
    reference, it would be. So the reference knows how many new names any day brings.

    Args:
        frame: the rows a champion is held to, one column a feature, and the model's scores.
        features: the model's inputs.
        policy: how many bins.
        extra: further numeric columns; by default the score.
        timestamp_column: UTC time of the rows; None when they have none, and count as independent.

    Raises:
        UsageError: the frame lacks a column, or there is nothing to profile.
    """
    kinds = {f.name: f.kind for f in features} | dict.fromkeys(extra, "numeric")
    lacking = sorted(set(kinds) - set(frame.columns))
    if lacking or not kinds:
        raise UsageError(
            f"the reference frame lacks the columns {lacking}; it has {sorted(frame.columns)}. "
            "Build it from a training set with one column a feature and the model's scores."
        )
    bins = tuple(bins_of(frame.get_column(name), name, kind, policy.bins) for name, kind in kinds.items())
    if timestamp_column is None:
        counts = np.concatenate([np.bincount(b.assign(frame), minlength=len(b.labels)) for b in bins])
        return ReferenceProfile(bins, tuple(int(n) for n in counts))
    hours = hours_of(frame, timestamp_column)
    whole = ReferenceProfile(bins, (0,) * sum(len(b.labels) for b in bins))
    by_hour = _count_by_hour(frame, whole, hours, days=hours // DAY_H)
    return replace(whole, counts=tuple(int(n) for n in by_hour.counts.sum(axis=0)), hours=by_hour)


def profile(frame: pl.DataFrame, reference: ReferenceProfile) -> Profile:
    """Count a frame on a reference's bins.

    Args:
        frame: any rows; a column it lacks is counted as absent, one of another type as far as it can be read.
        reference: whose bins.
    """
    counts = [np.bincount(b.assign(frame), minlength=len(b.labels)) for b in reference.features]
    return Profile(reference.fingerprint, np.concatenate(counts))


def profile_by_hour(frame: pl.DataFrame, reference: ReferenceProfile, timestamp_column: str) -> HourlyProfiles:
    """Count a frame on a reference's bins, each hour by itself, in one pass over the columns.

    Args:
        frame: rows with a UTC timestamp each.
        reference: whose bins.
        timestamp_column: the column that says which hour a row belongs to.

    Returns:
        Hours without rows are left out.

    Raises:
        UsageError: the column is not there, is not a timestamp with a time zone, or holds nulls.
    """
    return _count_by_hour(frame, reference, hours_of(frame, timestamp_column))


def _count_by_hour(
    frame: pl.DataFrame, reference: ReferenceProfile, hours: Counts, days: Counts | None = None
) -> HourlyProfiles:
    found, position = np.unique(hours, return_inverse=True)
    parts = []
    for bins in reference.features:
        codes = bins.assign(frame)
        if days is not None and bins.others:
            codes = np.where(
                _of_one_day(frame.get_column(bins.feature), bins, days), bins.labels.index("unseen"), codes
            )
        width = len(bins.labels)
        flat = np.bincount(position * width + codes, minlength=found.size * width)
        parts.append(flat.reshape(found.size, width))
    return HourlyProfiles(reference.fingerprint, found, np.concatenate(parts, axis=1))


def _of_one_day(values: pl.Series, bins: FeatureBins, days: Counts) -> NDArray[np.bool_]:
    """Which rows have a rare category that occurs on no other day."""
    rows = pl.DataFrame({"value": values.cast(pl.String), "day": days})
    once = rows.group_by("value").agg(pl.col("day").n_unique() == 1).filter("day").get_column("value")
    rare = once.filter(once.is_in(pl.Series(bins.others, dtype=pl.String).implode()))
    return rows.get_column("value").is_in(rare.implode()).fill_null(False).to_numpy()


def _same_bins(fingerprint: str, profile: Profile) -> None:
    if profile.reference != fingerprint:
        raise UsageError(
            f"a profile counted on the bins {profile.reference} cannot be read with {fingerprint}; "
            "profile the window again on the current reference."
        )
