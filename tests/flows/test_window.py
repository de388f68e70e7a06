"""The window that monitor judges: real lake, real Great Expectations."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from features.labels import PREDICTIONS
from features.lake import Lake
from flows import window
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import Expectation
from validation.contract import FAILED, ValidationResult, fingerprint, validate
from validation.quarantine import keep_aside
from validation.verdict import Status

NOW = datetime(2026, 1, 8, tzinfo=UTC)
AT = pl.Datetime("us", "UTC")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    found = Lake(Settings(home=tmp_path), "shop")
    monkeypatch.setattr(window, "open_context", lambda _: SimpleNamespace(lake=found, spec=PIPELINE))
    return found


def judge() -> ValidationResult:
    found = asyncio.run(window.validate_window.fn("shop", NOW - timedelta(days=7), NOW))
    assert isinstance(found, ValidationResult)
    return found


def refuse(lake: Lake, keys: list[str]) -> None:
    """Orders that were quarantined by the contract of now, for their price."""
    bad = feature_rows(list(keys), [2] * len(keys), price_eur=-1.0)
    keep_aside(lake, bad.with_columns(pl.lit("then").alias(FAILED)), OURS, NOW)


def feature_rows(keys: list[str | None], hours_before: list[int], **values: Any) -> pl.DataFrame:
    """Valid orders, but for what is said otherwise."""
    fine = {f.name: 1.0 if f.kind == "numeric" else "hat" for f in PIPELINE.features}
    times = pl.Series([NOW - timedelta(hours=h) for h in hours_before], dtype=AT)
    return pl.DataFrame({"entity_key": keys, "event_timestamp": times, **fine, **values})


def as_predicted(rows: pl.DataFrame, contract: str | None) -> pl.DataFrame:
    kept = {"score": 0.5, "model_version": "1", "created_timestamp": pl.lit(NOW).cast(AT)}
    told = {} if contract is None else {"contract": pl.lit(contract)}
    return rows.with_columns(**{n: v if isinstance(v, pl.Expr) else pl.lit(v) for n, v in kept.items()}, **told)


OURS = fingerprint(PIPELINE.contract)


def test_a_key_predicted_twice_is_judged_once(lake: Lake) -> None:
    for minute in range(2):
        made = {"created_timestamp": pl.lit(NOW + timedelta(minutes=minute)).cast(AT)}
        lake.append(PREDICTIONS, as_predicted(feature_rows(["o1"], [3]), None).with_columns(**made))
    assert judge().verdict.measurements["rows"] == 1


def test_the_sentence_says_how_to_see_the_rows_of_the_window_that_are_in_quarantine(lake: Lake) -> None:
    told = "`perennial contract quarantine shop` lists what is in quarantine, 2 rows of this window"
    lake.append(PREDICTIONS, as_predicted(feature_rows(["o1", "o2"], [3, 3]), OURS))
    assert "quarantine shop" not in judge().verdict.reason
    refuse(lake, ["o3", "o4"])
    assert judge().verdict.reason.endswith(f"; {told}")
    # One of them was let pass later, by another contract.
    lake.append(PREDICTIONS, as_predicted(feature_rows(["o3"], [2]), "another"))
    assert judge().verdict.reason.endswith(told.replace("2 rows", "1 row"))


def test_a_key_predicted_at_two_times_is_judged_twice(lake: Lake) -> None:
    for hours_before in (3, 27):
        lake.append(PREDICTIONS, as_predicted(feature_rows(["o1"], [hours_before]), None))
    assert judge().verdict.measurements["rows"] == 2


def test_a_window_is_judged_with_the_rows_that_were_quarantined_instead_of_scored(lake: Lake) -> None:
    lake.append(PREDICTIONS, as_predicted(feature_rows([f"o{i}" for i in range(94)], [3] * 94), OURS))
    refuse(lake, [f"o{i}" for i in range(94, 100)])
    found = judge()
    assert found.verdict.status is Status.FAIL
    # 94 of the 100 rows have a price of at least 0, 99 % are due.
    assert "price_eur between 0 and 10000 fails in 6 of 100 rows (94.00% met, 99.00% due)" in found.verdict.reason
    assert found.verdict.measurements["quarantined_rows"] == 6
    assert lake.rows("quarantine") == 6


def test_bad_rows_that_batch_after_batch_could_be_chance_are_found_in_the_window(lake: Lake) -> None:
    for batch in range(20):
        keys = [f"o{i}" for i in range(50 * batch, 50 * batch + 50)]
        prices = [1.0] * 49 + [-1.0]
        judged = validate(feature_rows(keys, [3] * 50, price_eur=prices), PIPELINE.contract, "shop")
        assert judged.verdict.status is Status.PASS
        assert "fails in 1 of 50 rows (98.00% met, 99.00% due), which may be chance" in judged.verdict.reason
        lake.append(PREDICTIONS, as_predicted(judged.valid, OURS))
        keep_aside(lake, judged.quarantined, OURS, NOW)
    found = judge()
    assert found.verdict.status is Status.FAIL
    # If one in a hundred were bad, 20 or more of 1,000 would come in 0.3 % of the windows.
    assert "fails in 20 of 1000 rows (98.00% met, 99.00% due), more than chance allows" in found.verdict.reason


def test_of_the_rows_that_met_the_contract_only_counts_are_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = [None] * 200 + [math.nan] * 100 + [1.0] * 300
    rows = feature_rows([f"o{i}" for i in range(600)], [3] * 600, price_eur=prices)
    lake.append(PREDICTIONS, as_predicted(rows, OURS))
    lake.append(PREDICTIONS, as_predicted(feature_rows(["o600"], [3]), "an older contract"))
    refuse(lake, [f"o{i}" for i in range(700, 720)])
    collect, heights = pl.LazyFrame.collect, []

    def watched(self: pl.LazyFrame, **how: Any) -> Any:
        found = collect(self, **how)
        heights.append(found.height)
        return found

    monkeypatch.setattr(pl.LazyFrame, "collect", watched)
    found = judge()
    assert max(heights) == 20
    assert found.verdict.measurements["rows"] == 621
    # 300 of the 621 have no price; 20 of the others have a negative one.
    assert "price_eur between 0 and 10000 fails in 20 of 321 rows (93.77% met, 99.00% due)" in found.verdict.reason
    assert "price_eur not null fails in" not in found.verdict.reason


def test_what_must_be_unique_is_so_in_the_whole_window(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Expectation(column="entity_key", kind="unique")
    once = PIPELINE.model_copy(update={"contract": (key, *PIPELINE.contract)})
    monkeypatch.setattr(window, "open_context", lambda _: SimpleNamespace(lake=lake, spec=once))
    ours = fingerprint(once.contract)
    for hours_before in (3, 27):
        # Each batch by itself has no key twice, so a score run lets it pass.
        rows = feature_rows(["o1", f"o{hours_before}"], [hours_before] * 2)
        assert validate(rows, once.contract, "shop").verdict.status is Status.PASS
        lake.append(PREDICTIONS, as_predicted(rows, ours))
    found = judge()
    assert found.verdict.status is Status.FAIL
    assert "entity_key unique fails in 2 of 4 rows" in found.verdict.reason
    assert found.judgements[0].examples == (("o1", 2),)
    # They have their prediction: none of them is anybody's to put aside.
    assert found.quarantined.is_empty()


def test_a_column_that_only_quarantined_rows_have_is_missing_in_the_others(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = (Expectation(column="product", kind="unique"), *PIPELINE.contract)
    spec = PIPELINE.model_copy(update={"contract": once})
    monkeypatch.setattr(window, "open_context", lambda _: SimpleNamespace(lake=lake, spec=spec))
    older = as_predicted(feature_rows(["o1", "o2"], [3, 3]).drop("product"), fingerprint(once))
    lake.append(PREDICTIONS, older)
    refuse(lake, ["o3"])
    found = judge()
    of_product = [(j.missing_rows, j.checked_rows) for j in found.judgements if j.expectation.column == "product"]
    assert set(of_product) == {(2, 1)}
    assert found.verdict.measurements["rows"] == 3


def test_a_table_without_the_contracts_mark_is_judged_whole(lake: Lake) -> None:
    lake.append(PREDICTIONS, as_predicted(feature_rows(["o1", "o2"], [2, 2]), None))
    found = judge()
    assert (found.verdict.status, found.verdict.measurements["rows"]) == (Status.PASS, 2)
    assert found.misfits == ()


def test_a_row_that_was_quarantined_and_scored_under_a_later_contract_counts_once(lake: Lake) -> None:
    rows = feature_rows(["o1", "o2"], [2, 2])
    keep_aside(lake, rows.with_columns(pl.lit("then").alias(FAILED)), "an older contract", NOW)
    lake.append(PREDICTIONS, as_predicted(rows, OURS))
    found = judge()
    assert (found.verdict.status, found.verdict.measurements["rows"]) == (Status.PASS, 2)


@pytest.mark.parametrize("contract", ["an older contract", None])
def test_what_was_scored_under_another_contract_is_judged_by_the_one_of_now(lake: Lake, contract: str | None) -> None:
    lake.append(PREDICTIONS, as_predicted(feature_rows(["o1", "o2"], [2, 2], product="sofa"), contract))
    found = judge()
    assert found.verdict.status is Status.FAIL
    assert "product in" in found.verdict.reason
    assert found.valid.is_empty()
    # They have their prediction; to quarantine them now would say that they were not scored.
    assert not lake.exists("quarantine")


def test_a_window_without_predictions_has_its_quarantined_rows(lake: Lake) -> None:
    bad = feature_rows(["o1", None], [2, 1], product="sofa").with_columns(pl.lit("then").alias(FAILED))
    keep_aside(lake, bad, OURS, NOW)
    found = judge()
    assert found.verdict.status is Status.FAIL
    assert found.verdict.measurements["rows"] == 2


def test_a_window_of_nothing_at_all_is_inconclusive(lake: Lake) -> None:
    assert judge().verdict.status is Status.INCONCLUSIVE
