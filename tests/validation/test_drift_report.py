from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape

import numpy as np
import polars as pl
import pytest

from perennial.errors import UsageError
from validation.drift import DriftVerdict, FeatureDrift
from validation.report import drift_markdown, drift_table, write_drift_report
from validation.verdict import Status, Verdict

MOVED = FeatureDrift(
    "origin", 0.312345678, 0.0, 0.051, Status.FAIL, "PSI 0.312 >= 0.25, most by =J|F*K: 30.0% -> 45.0%"
)
WATCHED = FeatureDrift("distance", 0.15, 0.0, 0.0, Status.PASS, "PSI 0.150 >= 0.1", watched=True)
STABLE = FeatureDrift("hour", 0.0123, 0.0, 0.0, Status.PASS, "PSI 0.012")
UNKNOWN = FeatureDrift("gust", math.nan, math.nan, math.nan, Status.INCONCLUSIVE, "there are no rows")
VERDICT = DriftVerdict(Verdict(Status.FAIL, "1 of 4 columns drifted"), (MOVED, WATCHED, STABLE, UNKNOWN))


def test_the_table_has_a_line_a_column_with_short_texts_and_no_raw_floats():
    table = drift_table(VERDICT)
    assert table[0] == {
        "column": "origin",
        "importance": "-",
        "PSI": "0.312",
        "missing before": "0.0%",
        "missing now": "5.1%",
        "state": "drifted",
        "since": "",
        "why": MOVED.reason,
    }
    assert [row["state"] for row in table] == ["drifted", "watched", "stable", "not known"]
    assert table[3]["PSI"] == "-"


def test_the_table_says_how_much_the_model_makes_of_a_column_and_since_when_it_moves():
    since = datetime(2013, 3, 5, 6, tzinfo=UTC)
    known = DriftVerdict(VERDICT.verdict, (replace(MOVED, importance=0.125, since=since),))
    assert (drift_table(known)[0]["importance"], drift_table(known)[0]["since"]) == ("12.5%", "2013-03-05 06:00")


def test_the_summary_says_what_moved_when_and_how_much():
    window = (datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 3, 8, tzinfo=UTC))
    lines = drift_markdown(VERDICT, pipeline="flights", window=window).splitlines()
    assert lines[0] == "## The data has moved: flights, 2013-03-01 00:00 to 2013-03-08 00:00 UTC"
    assert lines[2] == "1 of 4 columns drifted."
    assert [line.split(" | ")[0] for line in lines[6:]] == ["| origin", "| distance", "| hour", "| gust"]


def test_a_category_cannot_break_the_table():
    row = drift_markdown(VERDICT, pipeline="flights").splitlines()[6]
    assert "J\\|F\\*K" in row
    assert row.replace("\\|", "").count("|") == 9


def test_a_long_table_is_cut_and_says_so():
    told = drift_markdown(VERDICT, pipeline="flights", most=1)
    assert "distance" not in told
    assert told.endswith("3 more columns moved less.\n")


def test_without_columns_there_is_no_table():
    few = DriftVerdict(Verdict(Status.INCONCLUSIVE, "the current window has 3 rows"), ())
    assert drift_table(few) == []
    assert "|" not in drift_markdown(few, pipeline="flights")


def rows(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "distance": rng.normal(shift, 1, n),
            "origin": pl.Series(rng.choice(["JFK", "LGA", ""], n), dtype=pl.String).replace("", None),
            "late": rng.random(n) < 0.3,
            "constant": np.ones(n),
            "wild": np.where(rng.random(n) < 0.05, np.inf, rng.normal(size=n)),
            "empty": pl.Series([None] * n, dtype=pl.Float64),
            "when": [datetime(2013, 1, 1, tzinfo=UTC)] * n,
            f"only_{seed}": np.zeros(n),
            "changed": rng.random(n) if seed == 1 else ["text"] * n,
        }
    )


def test_evidently_draws_what_it_can_and_the_rest_is_named(tmp_path):
    path = tmp_path / "deep" / "drift.html"
    found = write_drift_report(rows(400, 1), rows(300, 2, shift=1.0), path, max_rows=200)
    assert found.columns == ("distance", "origin", "late", "constant", "wild")
    assert set(found.left_out) == {"empty", "when", "only_1", "only_2", "changed"}
    page = path.read_text(encoding="utf-8")
    assert "<html" in page
    for shown in found.columns:
        assert shown in page


@pytest.mark.parametrize("back", [None, "drift.html"])
def test_evidentlys_page_says_first_that_the_verdict_is_not_its_own(tmp_path, back):
    path = tmp_path / "page.html"
    write_drift_report(rows(400, 1), rows(300, 2), path, back=back, max_rows=200)
    body = path.read_text(encoding="utf-8").partition("<body>")[2]
    told = unescape(re.sub("<[^>]*>", "", body.partition("</p>")[0]))
    assert told.startswith("This page is to look at, not perennial's verdict")
    assert ('<a href="drift.html">' in body) is (back is not None)


@pytest.mark.parametrize("sides", [(0, 300), (300, 0), (0, 0)])
def test_an_empty_side_has_no_report_and_the_sentence_says_so(tmp_path, sides):
    with pytest.raises(UsageError, match=f"from {sides[0]} reference and {sides[1]} current rows"):
        write_drift_report(rows(sides[0], 1), rows(sides[1], 2), tmp_path / "drift.html")
    assert not list(tmp_path.iterdir())
