"""What drift costs: PSI of a million rows beside Evidently's, a year of hourly profiles, and a table of 1,000 columns.

    python -m benchmarks.drift [--json]

`seconds` is from a frame to a profile on frozen bins and the PSI of every column; `evidently_s` from the same frames to the
PSI of every column by Evidently's own preset. The reference is frozen before, because it is with every champion; Evidently
has nothing to freeze. Times are the fastest of three, Evidently's of one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.running import alone, fastest, quiet, scratch, tell
from features.lake import Lake
from perennial.settings import Settings
from pipelines.spec import DriftPolicy, Feature
from validation.bins import FeatureBins
from validation.hours import COUNTS, HourlyProfiles, hour_of, matrix
from validation.profile import ReferenceProfile, build_reference, profile
from validation.profile_log import PROFILES
from validation.psi import psi

ROWS, COLUMNS, TIMES = 1_000_000, 20, 3
WIDE_ROWS, WIDE_COLUMNS, CHUNK = 3_000_000, 1_000, 50_000
YEAR_H, YEAR_FEATURES = 8_760, 100
POLICY = DriftPolicy()


def table(rows: int, columns: int, seed: int, shift: float = 0.0) -> pl.DataFrame:
    """Normal columns x0, x1, .. of different scales."""
    dice = np.random.default_rng(seed)
    return pl.DataFrame({f"x{i}": dice.normal(shift, 1 + i % 7, rows) for i in range(columns)})


def features(columns: int) -> tuple[Feature, ...]:
    return tuple(Feature(name=f"x{i}", kind="numeric") for i in range(columns))


def psi_of_all(reference: ReferenceProfile, frame: pl.DataFrame) -> dict[str, float]:
    """PSI of every column of a frame."""
    found = profile(frame, reference)
    return {
        b.feature: psi(_cells(b, reference, np.array(reference.counts)), _cells(b, reference, found.counts))
        for b in reference.features
    }


def _cells(bins: FeatureBins, reference: ReferenceProfile, counts: Any) -> Any:
    start = reference.starts[bins.feature]
    return bins.cell_counts(counts[start : start + len(bins.labels)])


def ours() -> tuple[float, list[float]]:
    """Seconds, and the PSI of each column."""
    reference = build_reference(table(ROWS, COLUMNS, 1), features(COLUMNS), POLICY, extra=())
    current = table(ROWS, COLUMNS, 2, shift=0.2)
    seconds, found = fastest(TIMES, lambda: psi_of_all(reference, current))
    return seconds, list(found.values())


def evidently() -> tuple[float, list[float]]:
    """The same by Evidently: PSI by its preset, on the same frames."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=[f"x{i}" for i in range(COLUMNS)])
    before, after = table(ROWS, COLUMNS, 1).to_pandas(), table(ROWS, COLUMNS, 2, shift=0.2).to_pandas()
    began = time.perf_counter()
    was, now = (Dataset.from_pandas(f, data_definition=definition) for f in (before, after))
    result = Report([DataDriftPreset(method="psi")]).run(current_data=now, reference_data=was).dict()
    seconds = time.perf_counter() - began
    values = [m["value"] for m in result["metrics"] if isinstance(m["value"], float)]
    return seconds, values


def a_year(home: Path) -> dict[str, float | int]:
    """A year of hourly profiles of 100 features, summed: from memory, and read from the lake."""
    reference = build_reference(table(10_000, YEAR_FEATURES, 1), features(YEAR_FEATURES), POLICY, extra=())
    width = len(reference.counts)
    counts = np.random.default_rng(3).poisson(40, (YEAR_H, width)).astype(np.int32)
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    profiles = HourlyProfiles(reference.fingerprint, hour_of(begin) + np.arange(YEAR_H), counts)
    first, last = hour_of(begin), hour_of(begin) + YEAR_H
    merged_s, total = fastest(TIMES, lambda: profiles.between(first, last))
    at = pl.Datetime("us", "UTC")
    lake = Lake(Settings(home=home), "year")
    lake.append(
        PROFILES,
        pl.DataFrame(
            {
                "event_timestamp": [begin + timedelta(hours=h) for h in range(YEAR_H)],
                "counts": pl.Series(counts, dtype=pl.Array(pl.Int32, width)).cast(COUNTS),
            }
        ).with_columns(pl.col("event_timestamp").cast(at)),
        partition_by=None,
    )
    read_s, stored = fastest(TIMES, lambda: matrix(lake.read(PROFILES, columns=("counts",))["counts"]).sum(axis=0))
    if not np.array_equal(total, stored):
        raise SystemExit("the year in memory and the year in the lake differ")
    return {"hours": YEAR_H, "bins": width, "merge_s": merged_s, "read_s": read_s}


def wide() -> float:
    """Seconds to profile 3 M rows of 1,000 columns that come in pieces; making the pieces is not counted."""
    reference = build_reference(table(CHUNK, WIDE_COLUMNS, 1), features(WIDE_COLUMNS), POLICY, extra=())
    # Two pieces again and again: what is measured is the counting, and making 24 GB of numbers takes longer than that.
    pieces = [table(CHUNK, WIDE_COLUMNS, seed) for seed in (2, 3)]
    whole, seconds = np.zeros(len(reference.counts), dtype=np.int64), 0.0
    for number in range(WIDE_ROWS // CHUNK):
        began = time.perf_counter()
        whole += profile(pieces[number % 2], reference).counts
        seconds += time.perf_counter() - began
    if whole.sum() != WIDE_ROWS * WIDE_COLUMNS:
        raise SystemExit(f"{whole.sum()} values were counted, not {WIDE_ROWS * WIDE_COLUMNS}")
    return seconds


def measure(root: Path) -> dict[str, float | int]:
    """Every figure."""
    here, there = alone(ours), alone(evidently)
    year, broad = alone(a_year, root / "year"), alone(wide)
    return {
        "rows": ROWS,
        "columns": COLUMNS,
        "seconds": round(here.result[0], 4),
        "evidently_s": round(there.result[0], 2),
        "ratio": round(there.result[0] / here.result[0], 1),
        "peak_rss_mb": round(here.peak_rss_mb),
        "evidently_peak_rss_mb": round(there.peak_rss_mb),
        "largest_psi": round(max(here.result[1]), 4),
        "evidently_largest_psi": round(max(there.result[1]), 4),
        "merge_window_ms": round(year.result["merge_s"] * 1e3, 1),
        "read_and_merge_window_ms": round(year.result["read_s"] * 1e3, 1),
        "merged_hours": year.result["hours"],
        "merged_bins": year.result["bins"],
        "wide_rows": WIDE_ROWS,
        "wide_columns": WIDE_COLUMNS,
        "wide_s": round(broad.result, 1),
        "wide_peak_rss_mb": round(broad.peak_rss_mb),
    }


if __name__ == "__main__":
    quiet()
    with scratch() as folder:
        tell(measure(folder))
