from __future__ import annotations

import math
import random
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from toys_online import SPEC, T0, VIEW, Row, frame, toys
from toys_online import settings as settings  # a fixture

from features import newest, online_check
from features.lake import Lake
from features.online_check import Difference, ViewCheck, check_online, compare
from features.store import OnlineWriter, view_table, write_online
from perennial.errors import UnreachableError
from perennial.settings import Settings
from validation.verdict import Status

TABLE = view_table(VIEW)
TICK = timedelta(microseconds=1)


def checked(settings: Settings) -> ViewCheck:
    (found,) = check_online(SPEC, settings, Lake(settings, SPEC.name), again_after_s=0)
    return found


def test_every_kind_of_difference_is_found_counted_and_named(settings: Settings) -> None:
    later, lake = T0 + timedelta(hours=1), Lake(settings, SPEC.name)
    same: list[Row] = [(f"same {i}", T0, T0, float(i), None) for i in range(40)]
    both: list[Row] = [*same, ("missing", T0, T0, 1.0, 1.0), ("not a number", T0, T0, math.nan, 1.0)]
    lake.append(TABLE, frame(*both, ("older", T0, T0, 1.0, 1.0), ("newer", T0, T0, 1.0, 1.0)))
    lake.append(TABLE, frame(("older", later, T0, 2.0, 2.0), ("corrected", T0, T0 + TICK, 2.0, 2.0)))
    lake.append(TABLE, frame(("value", T0, T0, 1.0, None), ("second", T0, T0, 1.0, 5.0)))
    online = [r for r in both if r[0] != "missing"]
    online += [("older", T0, T0, 1.0, 1.0), ("newer", T0 + TICK, T0, 1.0, 1.0), ("corrected", T0, T0, 2.0, 2.0)]
    online += [("value", T0, T0, 1.0, 7.0), ("second", T0, T0, None, 6.0), ("nowhere", T0, T0, 1.0, 1.0)]
    write_online(SPEC, settings, VIEW, frame(*online))
    found = checked(settings)
    assert found.keys == 40 + 8
    assert found.differences == {
        "missing online": 1,
        "older online": 2,
        "newer online": 1,
        "value differs": 2,
        "not offline": 1,
    }
    assert set(found.examples) == {
        Difference("missing", "missing online", T0, None),
        Difference("older", "older online", later, T0),
        Difference("corrected", "older online", T0, T0),
        Difference("newer", "newer online", T0, T0 + TICK),
        Difference("value", "value differs", T0, T0, "shop_price_last_1h", None, 7.0),
        Difference("second", "value differs", T0, T0, "shop_price_mean_1h", 1.0, None),
        Difference("nowhere", "not offline", None, T0),
    }
    assert found.verdict.status is Status.FAIL
    assert found.verdict.reason == (
        "shop_prices: of 48 keys 1 missing online, 2 older online, 1 newer online, 2 value differs, 1 not offline"
    )


def test_the_same_rows_pass_in_any_number_of_files_and_slices(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices and batches are made so small that there are many of each."""
    monkeypatch.setattr(newest, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(newest, "KEYS_AT_ONCE", 60)
    monkeypatch.setattr(online_check, "KEYS_A_READ", 7)
    lake, chosen = Lake(settings, SPEC.name), random.Random(5)
    rows: list[Row] = [
        (f"k{key}", T0 + n * TICK, T0 + created * TICK, float(n), float(created))
        for key in range(300)
        for n in range(3)
        for created in range(2)
    ]
    chosen.shuffle(rows)
    for start in range(0, len(rows), 600):
        lake.append(TABLE, frame(*rows[start : start + 600]))
    write_online(SPEC, settings, VIEW, frame(*rows))
    assert checked(settings) == ViewCheck(VIEW.name, 300)
    OnlineWriter(SPEC, settings).write(VIEW, frame(("k7", T0 + 9 * TICK, T0, 1.0, 1.0), ("x", T0, T0, 1.0, 1.0)))
    found = checked(settings)
    assert (found.keys, found.differences) == (301, {"newer online": 1, "not offline": 1})


def test_no_rows_at_all_are_inconclusive(settings: Settings) -> None:
    assert checked(settings).verdict.status is Status.INCONCLUSIVE
    Lake(settings, SPEC.name).append(TABLE, frame())
    assert checked(settings).verdict.status is Status.INCONCLUSIVE


def test_rows_that_are_only_online_fail(settings: Settings) -> None:
    write_online(SPEC, settings, VIEW, frame(*((f"k{i}", T0, T0, 1.0, 1.0) for i in range(12))))
    found = checked(settings)
    assert (found.keys, found.differences, found.verdict.status) == (12, {"not offline": 12}, Status.FAIL)
    assert len(found.examples) == 5


def test_an_online_store_that_was_lost_is_found(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    rows = frame(*((f"k{i}", T0, T0, 1.0, 1.0) for i in range(12)))
    Lake(settings, SPEC.name).append(TABLE, rows)
    write_online(SPEC, settings, VIEW, rows)
    assert checked(settings).verdict.passed
    for file in (settings.feast_dir / SPEC.name).glob("online.db*"):
        file.unlink()
    assert checked(settings).differences == {"missing online": 12}


@pytest.mark.parametrize("writer", ["lake", "online", "both"])
def test_what_an_ingest_is_writing_just_now_is_no_fault(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two looks an ingest goes on; the key that nobody writes stays a difference."""
    settings = Settings(home=tmp_path)
    lake = Lake(settings, SPEC.name)
    stuck = ("stuck", T0, T0, 1.0, 1.0)
    if writer == "lake":  # online first, as ingest does: the lake follows
        lake.append(TABLE, frame(stuck))
        write_online(SPEC, settings, VIEW, frame(("moving", T0, T0, 1.0, 1.0)))
    else:
        lake.append(TABLE, frame(stuck, ("moving", T0, T0, 1.0, 1.0)))

    def ingest_goes_on(_: float) -> None:
        newer = frame(("moving", T0 + (writer == "both") * TICK, T0, 1.0, 1.0))
        if writer in ("online", "both"):
            write_online(SPEC, settings, VIEW, newer)
        if writer == "lake":
            lake.append(TABLE, newer)

    monkeypatch.setattr(online_check.time, "sleep", ingest_goes_on)
    found = checked(settings)
    assert [example.key for example in found.examples] == ["stuck"]
    assert found.differences == {"missing online": 1}


def test_a_feature_that_the_lake_does_not_have_yet_is_null_there(tmp_path: Path) -> None:
    settings, old = Settings(home=tmp_path), toys(features=["shop_price_mean_1h"])
    rows = frame(("a", T0, T0, 1.0), features=["shop_price_mean_1h"])
    Lake(settings, SPEC.name).append(TABLE, rows)
    write_online(old, settings, old.views[0], rows)
    assert checked(settings) == ViewCheck(VIEW.name, 1)


def test_a_created_time_that_the_store_does_not_know_is_no_difference() -> None:
    offline = frame(("a", T0, T0, 1.0, 1.0), ("b", T0, T0, 1.0, 1.0))
    online = frame(("a", T0, T0, 1.0, 1.0), ("b", T0, T0, 2.0, 1.0)).with_columns(
        created_timestamp=pl.lit(None, dtype=pl.Datetime("us", "UTC"))
    )
    assert compare(offline, online, VIEW).select("key", "kind").rows() == [("b", "value differs")]


MEAN = (0.1 + 0.2 + 0.3) / 3
VALUES: dict[str, tuple[float | None, float | None, bool]] = {
    "a mean added up in another order": (MEAN, (0.3 + 0.2 + 0.1) / 3, True),
    "of a large mean a part in ten thousand millions": (4e12, 4e12 + 400, True),
    "of a large mean a part in a hundred millions": (4e12, 4e12 + 40_000, False),
    "of a small mean a part in a hundred millions": (-4e-3, -4e-3 - 4e-11, False),
    "what is left of a sum that is zero": (0.0, 5e-13, True),
    "zero and a small number": (0.0, 1e-11, False),
    "opposite signs": (1.0, -1.0, False),
    "null and null": (None, None, True),
    "null and zero": (None, 0.0, False),
    "zero and null": (0.0, None, False),
    "NaN and NaN": (math.nan, math.nan, True),
    "NaN and a number": (math.nan, 1.0, False),
    "null and NaN": (None, math.nan, False),
    "infinity and infinity": (math.inf, math.inf, True),
    "infinity and a number": (math.inf, 1e308, False),
    "infinity and its opposite": (math.inf, -math.inf, False),
    "NaN and infinity": (math.nan, math.inf, False),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_that_differ_only_in_their_last_bits_are_the_same(what: str) -> None:
    offline, online, same = VALUES[what]
    for one, other in ((offline, online), (online, offline)):
        found = compare(frame(("a", T0, T0, 1.0, one)), frame(("a", T0, T0, 1.0, other)), VIEW)
        assert found["feature"].to_list() == ([] if same else ["shop_price_last_1h"])


def test_a_mean_that_was_added_up_in_another_order_is_not_the_same_double() -> None:
    one, other, _ = VALUES["a mean added up in another order"]
    assert one != other


def test_of_rows_of_one_moment_the_one_created_last_is_the_newest(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    lake = Lake(settings, SPEC.name)
    last = ("a", T0, T0 + 2 * TICK, 3.0, 3.0)
    for row in (("a", T0, T0, 1.0, 1.0), last, ("a", T0, T0 + TICK, 2.0, 2.0)):
        lake.append(TABLE, frame(row))
    write_online(SPEC, settings, VIEW, frame(last))
    assert checked(settings).verdict.passed


def test_a_store_that_does_not_answer_is_told(tmp_path: Path, free_port: int) -> None:
    settings = Settings(home=tmp_path, online_store_url=f"redis://127.0.0.1:{free_port}")
    Lake(settings, SPEC.name).append(TABLE, frame(("a", T0, T0, 1.0, 1.0)))
    with pytest.raises(UnreachableError, match="PERENNIAL_ONLINE_STORE_URL"):
        checked(settings)


@pytest.mark.parametrize(
    ("kind", "mendable"),
    [("missing online", 1), ("older online", 1), ("value differs", 1), ("newer online", 0), ("not offline", 0)],
)
def test_what_the_lake_holds_mends_what_is_missing_older_or_differs(kind: str, mendable: int) -> None:
    assert ViewCheck("a", 9, {kind: 2}).mendable == bool(mendable)
    assert not ViewCheck("a", 9).mendable
