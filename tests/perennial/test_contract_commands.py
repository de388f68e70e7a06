"""What a person sees of a contract, and how a change of it is tried."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from judged_shop import hours, open_lake, score, shop_spec, visit
from rich.console import Console

from perennial.contract_commands import in_words, rows_table, rows_told, window_of
from perennial.errors import UsageError
from pipelines.spec import Expectation
from validation.contract import fingerprint

TESTS = Path(__file__).parents[1]
PIPELINE = """
from judged_shop import BASKET, KEY, shop_spec
PIPELINE = shop_spec(KEY, BASKET.model_copy(update={"maximum": %d}))
"""


def write_pipeline(home: Path, maximum: int) -> None:
    folder = home / "pipelines" / "shop"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    (folder / "pipeline.py").write_text(PIPELINE % maximum)


def contract(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_PIPELINES_DIR": str(home / "pipelines"),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    whole = [sys.executable, "-m", "perennial.cli", "contract", *command]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


def test_the_contract_is_told_in_words_with_its_fingerprint(tmp_path: Path) -> None:
    write_pipeline(tmp_path, 1_000)
    shown = contract(tmp_path, "show", "shop")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"shop: Will this visitor buy? Contract {fingerprint(shop_spec().contract)}.",
        "entity_key: not null",
        "basket_eur (what is in the basket, EUR): between 0 and 1000 in 99.7% of the rows",
    ]


def test_a_change_of_the_contract_is_tried_on_stored_rows_and_the_exit_status_says_how_it_ended(tmp_path: Path) -> None:
    write_pipeline(tmp_path, 1_000)
    visit(tmp_path, 1, ann=10, bob=20)
    visit(tmp_path, 5, cid=30, dan=2_000, eve=2_000)
    before = open_lake(tmp_path).tables()
    refused = contract(tmp_path, "check", "shop")
    assert refused.returncode == 1
    assert "5 events" in refused.stdout
    assert "2 would be quarantined" in refused.stdout
    told = "basket_eur between 0 and 1000: 2 of 5 rows fail: '2000.0' (2)"
    assert told in refused.stdout
    assert "Traceback" not in refused.stderr
    shown = refused.stdout.splitlines()
    first = next(n for n, line in enumerate(shown) if line == "They are:")
    assert [line.split() for line in shown[first + 1 :] if line.startswith(" 2026-")] == [
        ["2026-01-01", "05:00:00", name, "basket_eur", "between", "0", "and", "1000", "2000.0"]
        for name in ("dan", "eve")
    ]
    assert "`perennial contract quarantine shop` lists the rows that scoring has put aside" in refused.stderr
    write_pipeline(tmp_path, 5_000)
    wider = contract(tmp_path, "check", "shop", "--since", "2026-01-01T02:00")
    assert (wider.returncode, "PASS. shop: 3 rows met 2 expectations" in wider.stdout) == (0, True), wider.stderr
    assert open_lake(tmp_path).tables() == before, "a check writes nothing"


def test_quarantined_rows_are_listed_newest_first_with_what_they_failed_and_the_value(tmp_path: Path) -> None:
    write_pipeline(tmp_path, 1_000)
    assert contract(tmp_path, "quarantine", "shop").stdout == "shop has no row in quarantine.\n"
    visit(tmp_path, 1, ann=10, bob=20, cid=30, dan=40, eve=-5)
    score(tmp_path, 2)
    visit(tmp_path, 3, flo=10, gus=20, hal=30, ida=40, **{"a\x1b[31m": 5_000})
    score(tmp_path, 4)
    listed = contract(tmp_path, "quarantine", "shop")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert lines[0] == "shop: 2 rows in quarantine:"
    assert max(map(len, lines[:-1])) <= 80
    assert [line.split() for line in lines if "2026-" in line] == [
        ["2026-01-01", "03:00:00", "a\\x1b[31m", "basket_eur", "between", "0", "and", "1000", "5000.0"],
        ["2026-01-01", "01:00:00", "eve", "basket_eur", "between", "0", "and", "1000", "-5.0"],
    ]
    assert "`perennial contract check shop`" in lines[-1]
    newest = contract(tmp_path, "quarantine", "shop", "--last", "1").stdout
    assert newest.startswith("shop: 2 rows in quarantine, the newest 1:\n")
    assert "-5.0" not in newest
    then = json.loads(contract(tmp_path, "quarantine", "shop", "--as-of", "2026-01-01T02:00", "--json").stdout)
    assert then == {
        "pipeline": "shop",
        "rows_in_quarantine": 1,
        "rows": [
            {
                "event_timestamp": "2026-01-01T01:00:00+00:00",
                "entity_key": "eve",
                "failed": [{"expectation": "basket_eur between 0 and 1000", "column": "basket_eur", "value": -5.0}],
                "contract": fingerprint(shop_spec().contract),
                "quarantined_at": "2026-01-01T02:00:00+00:00",
            }
        ],
    }


def test_a_row_that_failed_several_lines_has_a_line_for_each_and_any_value_is_told(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        {
            "entity_key": [None, "bob"],
            "event_timestamp": [hours(1), hours(0)],
            "basket_eur": [math.inf, None],
            "product": ["\N{HAMMER}" * 300, ""],
            "failed_expectation": ["entity_key not null; basket_eur at most 9; product unique", "product in {a, b}"],
        }
    )
    written = io.StringIO()
    Console(width=80, file=written).print(rows_table(rows))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    folded = [" ".join(line.split()) for line in lines]
    assert "2026-01-01 01:00:00 no value entity_key not null no value" in folded
    assert "basket_eur at most 9 inf" in folded
    assert "2026-01-01 00:00:00 bob product in {a, b} (empty)" in folded
    assert "".join(folded).count("\N{HAMMER}") == 59
    first, second = json.loads(json.dumps(rows_told(rows), allow_nan=False))
    assert [one["value"] for one in first["failed"]] == [None, "inf", "\N{HAMMER}" * 300]
    assert (second["failed"][0]["value"], second["contract"], second["quarantined_at"]) == ("", None, None)


def test_the_window_ends_after_the_newest_event_and_is_as_long_as_drifts(tmp_path: Path) -> None:
    lake, spec = open_lake(tmp_path), shop_spec()
    with pytest.raises(UsageError, match="no event to judge yet"):
        window_of(lake, spec, None, None)
    visit(tmp_path, 1, ann=10)
    visit(tmp_path, 5, bob=20)
    end = hours(5) + timedelta(microseconds=1)
    assert window_of(lake, spec, None, None) == (end - timedelta(days=6), end)
    assert window_of(lake, spec, "2026-01-01T02:00", None) == (hours(2), end)
    assert window_of(lake, spec, None, "2026-01-01T03:00") == (hours(3) - timedelta(days=6), hours(3))
    with pytest.raises(UsageError, match="--since 2026-02-01 00:00:00 is not before 2026-01-01 00:00:00 UTC"):
        window_of(lake, spec, "2026-02-01", "2026-01-01")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Expectation(column="x", kind="unique"), "unique"),
        (Expectation(column="x", kind="between", minimum=0.5, mostly=0.995), "at least 0.5 in 99.5% of the rows"),
        (Expectation(column="x", kind="in_set", values=("a", "b")), "in {a, b}"),
    ],
)
def test_a_line_is_told_without_its_column(line: Expectation, words: str) -> None:
    assert in_words(line) == words
