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
from validation.report import drift_table, drift_table_markdown, narrow_table, write_drift_report
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


def test_the_summary_is_a_table_without_sentences_and_below_it_why():
    since = datetime(2013, 3, 5, 6, tzinfo=UTC)
    moved = DriftVerdict(VERDICT.verdict, (replace(MOVED, since=since), *VERDICT.features[1:]))
    lines = drift_table_markdown(moved).splitlines()
    assert lines[0] == "| column | state | PSI | missing | importance | since |"
    assert lines[2:7] == [
        "| origin | drifted | 0.312 | 0.0% -\\> 5.1% | - | 2013-03-05 06:00 |",
        "| distance | watched | 0.150 | 0.0% -\\> 0.0% | - |  |",
        "| hour | stable | 0.012 | 0.0% -\\> 0.0% | - |  |",
        "| gust | not known | - | - -\\> - | - |  |",
        "",
    ]
    assert lines[7].startswith("- origin, since 2013-03-05 06:00: PSI 0.312 \\>= 0.25, most by")
    assert [line.partition(":")[0] for line in lines[8:]] == ["- distance", "- gust"]
    assert [list(row) for row in narrow_table(moved)] == [
        ["column", "state", "PSI", "missing", "importance", "since"]
    ] * 4
    assert max(len(cell) for row in narrow_table(moved) for cell in row.values()) <= 16


def test_a_category_cannot_break_the_table():
    evil = replace(MOVED, feature="J|F*K")
    lines = drift_table_markdown(DriftVerdict(VERDICT.verdict, (evil,))).splitlines()
    assert lines[2].startswith("| J\\|F\\*K |")
    assert lines[2].replace("\\|", "").count("|") == 7
    assert "J\\|F\\*K" in lines[4]


def test_a_long_table_is_cut_and_says_so():
    told = drift_table_markdown(VERDICT, most=1)
    assert "distance" not in told
    assert "\n3 more columns moved less.\n" in told


def test_without_columns_there_is_no_table():
    few = DriftVerdict(Verdict(Status.INCONCLUSIVE, "the current window has 3 rows"), ())
    assert drift_table(few) == []
    assert drift_table_markdown(few) == ""


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
