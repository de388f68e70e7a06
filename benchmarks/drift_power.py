"""How often drift is cried where there is none, and how surely it is found where there is: on real flights.

    python -m benchmarks.drift_power [--json] [--three-days]

Days of the year 2013 are dealt out at random, whole, so that the rows of a day stay together: eight weeks of them are the
reference, and each window is six more days, about 5,500 flights, on the same weekdays. A model is fitted on the reference as
a retrain does it, so that its score is one of the columns. In these windows nothing has moved; any column that is named is a
false alarm. Then one column of such windows is changed, and must be named. Each judgement
looks at two windows in a row, as the default policy does. Beside it Evidently's default preset on the same rows.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.running import quiet, scratch, tell
from features.lake import Lake
from features.store import historical, view_table
from features.windows import build_features
from perennial.settings import Settings
from pipelines.spec import DriftPolicy, PipelineSpec, load_pipeline
from training.dataset import TrainingSet
from training.fit import fit
from training.unseen import unseen_scores
from validation.bins import FeatureBins
from validation.drift import DriftVerdict, detect_drift
from validation.hours import DAY_H, HourlyProfiles, hour_of, moment_of
from validation.profile import SCORE, ReferenceProfile, build_reference, profile_by_hour
from validation.windows import windows_before

YEAR = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
REFERENCE_DAYS, WINDOWS = 56, 4
WINDOW_DAYS = 3 if "--three-days" in sys.argv[1:] else 6
REFERENCES, PER_REFERENCE, PLANTED_PER_REFERENCE = 50, 20, 2
EVIDENTLY_PER_REFERENCE = 4
POLICY = DriftPolicy(window_s=WINDOW_DAYS * 86_400, persistence=2, seasonal=True)
OF_DAYS_FROM = 0.25
"""Where days explain at least so much of a column's variance, its figures stand apart from those of the others."""
SHIFT, SCALE, NEW_SHARE, MISSING = 0.4, 1.35, 0.05, 0.05
MONDAY = hour_of(datetime(2024, 1, 1, tzinfo=UTC))


def flights(home: Path) -> tuple[PipelineSpec, pl.DataFrame]:
    """Every flight of the year with the model's inputs, as the stream knew them."""
    spec, settings = load_pipeline("flights"), Settings(home=home)
    lake, pins = Lake(settings, spec.name), {}
    history = spec.replay(*YEAR)
    for view in spec.views:
        # In the order of event time, once each: as a stream without faults.
        arrived = history[view.topic].with_columns(
            kafka_partition=pl.lit(0),
            kafka_offset=pl.int_range(pl.len()),
            late_s=pl.lit(0.0),
            too_late=pl.lit(value=False),
            is_duplicate=pl.lit(value=False),
        )
        rows = build_features(arrived, view, spec.event(view.topic))
        pins[view_table(view)] = lake.append(view_table(view), rows).snapshot_id
    frame = historical(spec, settings, history[spec.scored.topic], pins)
    landed = history[spec.label.topic]
    told = landed.select(pl.col(spec.label.key).alias("entity_key"), spec.label.value(landed).alias("label"))
    frame = frame.join(told.unique("entity_key"), on="entity_key", how="left", maintain_order="left")
    return spec, frame.with_columns(day=pl.col("event_timestamp").dt.date())


def scored(spec: PipelineSpec, frame: pl.DataFrame, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The year and the reference with the scores of a model that a retrain at the end of the reference makes."""
    end = moment_of(MONDAY + REFERENCE_DAYS * DAY_H)
    older = pl.col("event_timestamp") < end - timedelta(seconds=spec.retrain.holdout_s)
    known = rows.drop_nulls("label")
    learned = TrainingSet(spec.name, end, spec.features, known.filter(older), known.filter(~older), {})
    candidate = fit(learned, spec.model, spec.model.seed, None)
    scores = unseen_scores(candidate, learned, rows, spec.model, None)
    return frame.with_columns(pl.Series(SCORE, candidate.predict(frame))), rows.with_columns(pl.Series(SCORE, scores))


@dataclass(frozen=True)
class Deal:
    """One deal of the year's days.

    Attributes:
        reference: days of the reference, each on a weekday of its own turn.
        windows: days of further windows, in sequences of `WINDOWS`, oldest first.
    """

    reference: list[date]
    windows: list[list[list[date]]]


def deals(days: list[date], dice: np.random.Generator) -> Iterator[Deal]:
    """Days drawn by weekday, so that each stands on its own weekday; the reference's are in no window."""
    by_weekday = [[d for d in days if d.weekday() == weekday] for weekday in range(7)]
    for _ in range(REFERENCES):
        mixed = [list(dice.permutation(np.array(some, dtype=object))) for some in by_weekday]
        weeks = REFERENCE_DAYS // 7
        reference = [mixed[w][i] for i in range(weeks) for w in range(7)]
        rest = [some[weeks:] for some in mixed]
        windows = []
        for _ in range(PER_REFERENCE):
            drawn = [list(dice.permutation(np.array(some, dtype=object))) for some in rest]
            in_order = [drawn[i % 7][i // 7] for i in range(WINDOWS * WINDOW_DAYS)]
            windows.append([in_order[w * WINDOW_DAYS :][:WINDOW_DAYS] for w in range(WINDOWS)])
        yield Deal(reference, windows)


@dataclass(frozen=True)
class Year:
    """The whole year's counts on a reference's bins, by day and hour."""

    bins: ReferenceProfile
    by_day: dict[date, tuple[Any, Any]]

    def put(self, days: list[date], first: int) -> HourlyProfiles:
        """Days one after the other, from an hour on that begins a Monday."""
        hours, counts = [], []
        for position, day in enumerate(days):
            within, some = self.by_day[day]
            hours.append(first + position * DAY_H + within)
            counts.append(some)
        return HourlyProfiles(self.bins.fingerprint, np.concatenate(hours), np.concatenate(counts))


def counted(frame: pl.DataFrame, bins: ReferenceProfile) -> Year:
    found = profile_by_hour(frame, bins, "event_timestamp")
    by_day: dict[date, tuple[Any, Any]] = {}
    for day in np.unique(found.hours // DAY_H):
        here = found.hours // DAY_H == day
        by_day[moment_of(int(day) * DAY_H).date()] = found.hours[here] % DAY_H, found.counts[here]
    return Year(bins, by_day)


def put_rows(frame: pl.DataFrame, days: list[date], first: int) -> pl.DataFrame:
    """The rows of some days, on the calendar as `Year.put` has them."""
    parts = []
    for position, day in enumerate(days):
        rows = frame.filter(pl.col("day") == day)
        shift = (first + position * DAY_H) * 3600 - int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        parts.append(rows.with_columns(pl.col("event_timestamp") + pl.duration(seconds=shift)))
    return pl.concat(parts).sort("event_timestamp")


def judge(reference: ReferenceProfile, year: Year, sequence: list[list[date]]) -> DriftVerdict:
    """The verdict on the last two windows of a sequence, its first one being what was before them."""
    begin = MONDAY + (REFERENCE_DAYS + WINDOW_DAYS) * DAY_H
    days = [day for window in sequence[1:] for day in window]
    on = [moment_of(begin + number * DAY_H).weekday() for number in range(len(days))]
    if on != [day.weekday() for day in days]:
        raise SystemExit("days were put on other weekdays than their own")
    current = year.put(days, begin)
    until = moment_of(begin + len(days) * DAY_H)
    return detect_drift(reference, windows_before(current, reference, until, POLICY), POLICY)


def named(verdict: DriftVerdict) -> set[str]:
    return {f.feature for f in (*verdict.drifted, *verdict.watched)}


def plants(
    frame: pl.DataFrame, reference: pl.DataFrame, bins: FeatureBins, dice: np.random.Generator
) -> Iterator[tuple[str, pl.Series]]:
    """The changed columns that are planted into a feature, by name."""
    values, name = frame.get_column(bins.feature), bins.feature
    if bins.kind == "numeric":
        known = reference.get_column(name).drop_nulls()
        mean, deviation = float(known.mean()), float(known.std())  # type: ignore[arg-type]
        yield "mean shift 0.4 sigma", values + SHIFT * deviation
        yield "scale 1.35", (values - mean) * SCALE + mean
    else:
        new = pl.Series(dice.random(frame.height) < NEW_SHARE)
        yield "new category 5 %", pl.select(pl.when(new).then(pl.lit("ZZ")).otherwise(values)).to_series().alias(name)
    gone = pl.Series(dice.random(frame.height) < MISSING)
    yield "missing +5 points", pl.select(pl.when(~gone).then(values)).to_series().alias(name)


def only(year: Year, reference: ReferenceProfile, bins: FeatureBins, frame: pl.DataFrame, column: pl.Series) -> Year:
    """The year with one column changed."""
    one = replace(reference, features=(bins,), counts=tuple(0 for _ in bins.labels), hours=None)
    changed = counted(frame.select("event_timestamp", column.alias(bins.feature)), one)
    start = reference.starts[bins.feature]
    by_day = {}
    for day, (within, counts) in year.by_day.items():
        copy = counts.copy()
        copy[:, start : start + len(bins.labels)] = changed.by_day[day][1]
        by_day[day] = within, copy
    return Year(year.bins, by_day)


def evidently(spec: PipelineSpec, reference: pl.DataFrame, current: pl.DataFrame) -> tuple[int, bool]:
    """How many columns Evidently's default preset calls drifted, and whether it calls the dataset so."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=[f.name for f in spec.features if f.kind == "numeric"],
        categorical_columns=[f.name for f in spec.features if f.kind == "categorical"],
    )
    was, now = (
        Dataset.from_pandas(f.select(spec.feature_names).to_pandas(), data_definition=definition)
        for f in (reference, current)
    )
    result = Report([DataDriftPreset()]).run(current_data=now, reference_data=was).dict()
    count = next(m["value"] for m in result["metrics"] if "DriftedColumnsCount" in m["metric_name"])
    return int(count["count"]), float(count["share"]) >= 0.5


def measure(home: Path) -> dict[str, Any]:
    """Every figure."""
    began = time.perf_counter()
    spec, frame = flights(home)
    days = sorted(set(frame.get_column("day").to_list()) - {date(2013, 1, 1)})  # its first hours lie in 2012
    dice = np.random.default_rng(2013)
    false, judged, wrong = 0, 0, defaultdict[str, int](int)
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    delays: list[int | None] = []
    peer_columns, peer_sets, peer_s, peers = 0, 0, 0.0, 0
    rows_of_windows = []
    for number, deal in enumerate(deals(days, dice)):
        rows = put_rows(frame, deal.reference, MONDAY)
        asked, rows = scored(spec, frame, rows)
        reference = build_reference(rows, spec.features, POLICY, timestamp_column="event_timestamp")
        year = counted(asked, reference)
        for sequence in deal.windows:
            verdict = judge(reference, year, sequence)
            judged += 1
            false += bool(named(verdict))
            rows_of_windows.append(verdict.verdict.measurements["current_rows"])
            for name in named(verdict):
                wrong[name] += 1
        for bins in reference.features:
            if bins.feature == SCORE:
                continue  # it moves by what it is made of
            for plant, column in plants(frame, rows, bins, dice):
                moved = only(year, reference, bins, frame, column)
                for sequence in deal.windows[:PLANTED_PER_REFERENCE]:
                    found[plant, bins.feature].append(bins.feature in named(judge(reference, moved, sequence)))
                    delays.append(delay(reference, year, moved, sequence, bins.feature))
        for sequence in deal.windows[:EVIDENTLY_PER_REFERENCE]:
            start = time.perf_counter()
            columns, whole = evidently(spec, rows, put_rows(frame, sequence[-1], MONDAY))
            peer_s += time.perf_counter() - start
            peers, peer_columns, peer_sets = peers + 1, peer_columns + (columns > 0), peer_sets + whole
        print(
            f"{number + 1} of {REFERENCES}: {false} of {judged} false, {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
    kinds = sorted({plant for plant, _ in found})
    shares = {f.name: day_share(frame, f.name) for f in spec.features if f.kind == "numeric"}
    of_rows = {name for name, share in shares.items() if share < OF_DAYS_FROM}
    return {
        "windows": judged,
        "rows_per_window": round(float(np.median(rows_of_windows))),
        "false_alarm_rate": false / judged,
        "false_alarms_by_column": dict(wrong),
        "detection_rate": {k: rate([x for (p, _), some in found.items() if p == k for x in some]) for k in kinds},
        "detection_rate_by_column": {k: {f: rate(some) for (p, f), some in found.items() if p == k} for k in kinds},
        "detection_rate_of_rows": {
            k: rate([x for (p, f), some in found.items() if p == k and f in of_rows for x in some])
            for k in kinds
            if any(p == k and f in of_rows for p, f in found)
        },
        "share_of_variance_between_days": {name: round(share, 3) for name, share in shares.items()},
        "delay_windows": round(float(np.mean([d for d in delays if d])), 2),
        "not_found_within_windows": {str(WINDOWS - 1): rate([d is None for d in delays])},
        "evidently_windows": peers,
        "evidently_any_column_rate": peer_columns / peers,
        "evidently_dataset_rate": peer_sets / peers,
        "evidently_s_per_window": round(peer_s / peers, 2),
        "wall_s": round(time.perf_counter() - began),
    }


def delay(reference: ReferenceProfile, year: Year, moved: Year, sequence: list[list[date]], feature: str) -> int | None:
    """Windows from the first changed one to the one that names it, None if none does; the window before is unchanged."""
    begin = MONDAY + REFERENCE_DAYS * DAY_H
    before = year.put(sequence[0], begin)
    after = moved.put([d for w in sequence[1:] for d in w], begin + WINDOW_DAYS * DAY_H)
    hours, counts = np.concatenate([before.hours, after.hours]), np.concatenate([before.counts, after.counts])
    both = HourlyProfiles(reference.fingerprint, hours, counts)
    for windows in range(1, len(sequence)):
        until = moment_of(begin + (1 + windows) * WINDOW_DAYS * DAY_H)
        if feature in named(detect_drift(reference, windows_before(both, reference, until, POLICY), POLICY)):
            return windows
    return None


def day_share(frame: pl.DataFrame, feature: str) -> float:
    """How much of a column's variance lies between days, 0 to 1: the part of which a week of rows knows seven values."""
    known = frame.select("day", pl.col(feature)).drop_nulls()
    within = known.with_columns(pl.col(feature) - pl.col(feature).mean().over("day"))
    return 1 - float(within[feature].var() / known[feature].var())  # type: ignore[arg-type, operator]


def rate(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 4)


if __name__ == "__main__":
    quiet()
    with scratch() as folder:
        tell(measure(folder))
