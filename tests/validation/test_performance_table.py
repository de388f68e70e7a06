from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from pipelines.spec import Feature, PerformancePolicy
from validation.calibration import calibrate
from validation.estimate import check_estimate, estimate_performance
from validation.metrics import days_of
from validation.performance import measure_performance
from validation.performance_table import performance_markdown
from validation.slices import freeze_slices

POLICY = PerformancePolicy(min_rows=500)
HOSTILE = "a|b <script>\n*c*"


def sold(seed, rows=4_000, bad=""):
    rng = np.random.default_rng(seed)
    shop = rng.choice([HOSTILE, "south", "tiny"], rows, p=[0.6, 0.39, 0.01])
    odds = rng.normal(-1, 1.2, rows)
    label = rng.random(rows) < 1 / (1 + np.exp(-odds))
    return pl.DataFrame(
        {
            "shop": shop,
            "score": 1 / (1 + np.exp(np.where(shop == bad, odds, -odds))),
            "label": label,
            "event_timestamp": [datetime(2013, 3, 1, tzinfo=UTC) + timedelta(days=i % 8) for i in range(rows)],
        }
    )


def learned(frame):
    arrays = frame["score"].to_numpy(), frame["label"].to_numpy(), days_of(frame["event_timestamp"])
    return freeze_slices(frame, *arrays, [Feature(name="shop", kind="categorical")]), calibrate(*arrays)


def cells(text, start):
    """The cells of the first line of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_what_is_measured_is_apart_from_what_is_estimated_and_the_worst_slice_comes_first():
    slices, calibration = learned(sold(1))
    live = sold(2, bad="south")
    measured = measure_performance(live, 0.78, POLICY, slices)
    estimate = estimate_performance(live, calibration, 0.78, POLICY)
    check = check_estimate(live, calibration, POLICY)
    text = performance_markdown(measured, estimate, check)
    ends = f"{estimate.intervals['auc'].low:.3f} to {estimate.intervals['auc'].high:.3f}"
    assert cells(text, "metric |")[3:] == ["estimated, no labels yet", "95 % interval of the estimate"]
    assert cells(text, "AUC")[1] == f"{measured.auc:.3f}"
    assert cells(text, "AUC")[3:] == [f"{estimate.intervals['auc'].value:.3f}", ends]
    assert "**Estimated: PASS.** estimated AUC" in text
    assert "**Estimate and truth: FAIL.**" in text
    assert "missed" in text
    listed = [line for line in text.splitlines() if line.startswith("| shop")]
    assert listed[0].startswith("| shop: south | worse |")
    assert " | as expected | " in listed[-1]
    assert (cells(text, "shop: tiny")[1], cells(text, "shop: tiny")[-1]) == ("not known", "-")
    # What a category holds cannot break the table.
    assert cells(text, r"shop: a\|b")[0] == r"shop: a\|b \<script\> \*c\*"
    assert all(len(cells(line, "")) == 7 for line in listed)


def test_slices_that_are_not_shown_are_counted():
    slices, _ = learned(sold(1))
    measured = measure_performance(sold(2), 0.78, POLICY, slices)
    assert "2 more slices are not shown." in performance_markdown(measured, most=1)


def test_where_nothing_is_known_no_number_is_shown():
    _, calibration = learned(sold(1))
    nothing = sold(1).clear()
    measured = measure_performance(nothing, 0.78, POLICY)
    estimate = estimate_performance(nothing, calibration, 0.78, POLICY)
    text = performance_markdown(measured, estimate, check_estimate(nothing, calibration, POLICY))
    assert cells(text, "AUC")[1:] == ["-"] * 4
    assert "nan" not in text
    assert text.count("INCONCLUSIVE") == 3
    assert "estimated" not in performance_markdown(measured)
