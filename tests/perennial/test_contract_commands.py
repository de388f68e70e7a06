"""What a person sees of a contract, and how a change of it is tried."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from judged_shop import hours, open_lake, shop_spec, visit

from perennial.contract_commands import in_words, window_of
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
    write_pipeline(tmp_path, 5_000)
    wider = contract(tmp_path, "check", "shop", "--since", "2026-01-01T02:00")
    assert (wider.returncode, "PASS. shop: 3 rows met 2 expectations" in wider.stdout) == (0, True), wider.stderr
    assert open_lake(tmp_path).tables() == before, "a check writes nothing"


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
