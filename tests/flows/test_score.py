"""Every batch is judged by the contract before it is scored: real flow, real lake, real Great Expectations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from judged_shop import BASKET, KEY, T0, aside, open_lake, score, scored, shop_spec, visit

from flows import score as flow
from perennial.errors import StageError, UsageError
from pipelines.spec import Feature
from validation.alert_log import read_sent
from validation.alerts import Finding
from validation.contract import fingerprint
from validation.quarantine import QUARANTINE


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def announce(told: list[tuple[str, dict[str, Any]]]) -> Any:
    return lambda event, _, payload: told.append((event, payload))


def test_a_batch_that_passes_by_mostly_is_scored_without_its_bad_rows(tmp_path: Path, announce: Any, told: Any) -> None:
    visit(tmp_path, 1, ann=10, bob=20, cid=30, dan=40, eve=-5)
    found = score(tmp_path, 2, announce=announce)
    assert (found.scored_rows, found.version, found.quarantined_rows) == (4, "1", 1)
    assert scored(tmp_path) == ["ann", "bob", "cid", "dan"]
    (kept,) = open_lake(tmp_path).read(QUARANTINE).iter_rows(named=True)
    assert (kept["entity_key"], kept["basket_eur"]) == ("eve", -5.0)
    assert kept["failed_expectation"] == "basket_eur between 0 and 1000"
    assert kept["contract"] == fingerprint(shop_spec().contract)
    assert kept["created_timestamp"].isoformat() == "2026-01-01T02:00:00+00:00"
    assert told == []
    assert score(tmp_path, 3) == flow.ScoreSummary(0, "1", 0)


def test_a_batch_that_fails_stops_tells_and_is_taken_up_without_its_bad_rows(
    tmp_path: Path, announce: Any, told: Any
) -> None:
    visit(tmp_path, 1, ann=10, bob=20, cid=30, dan=-1, eve=5_000)
    with pytest.raises(StageError) as stopped:
        score(tmp_path, 2, announce=announce)
    said = str(stopped.value)
    assert "none of 5 rows was scored" in said
    assert (
        "basket_eur between 0 and 1000 fails in 2 of 5 rows (60.00% met, 99.70% due), more than chance allows" in said
    )
    assert scored(tmp_path) == []
    assert aside(tmp_path) == ["dan", "eve"]
    ((event, payload),) = told
    assert (event, payload["status"]) == ("perennial.data.invalid", "FAIL")
    page = Path(said.rsplit("file://", 1)[1])
    assert "basket_eur" in page.read_text()
    (sent,) = read_sent(open_lake(tmp_path)).iter_rows(named=True)
    assert (sent["check"], sent["severity"], sent["kind"]) == ("scoring", "CRITICAL", "alert")
    assert "none of 5 rows was scored" in sent["headline"]
    assert sent["decision"] == (
        "The 2 rows that failed go to quarantine (`perennial contract quarantine shop` lists them), "
        "the next run scores the others"
    )
    visit(tmp_path, 3, fay=50)
    assert score(tmp_path, 4, announce=announce).scored_rows == 4
    assert scored(tmp_path) == ["ann", "bob", "cid", "fay"]
    assert aside(tmp_path) == ["dan", "eve"]
    assert len(told) == 1


def test_those_who_were_told_that_scoring_stopped_are_told_when_it_goes_on_and_not_before(tmp_path: Path) -> None:
    def kinds() -> list[str]:
        sent = read_sent(open_lake(tmp_path))
        return [] if sent.is_empty() else sent.sort("event_timestamp")["kind"].to_list()

    visit(tmp_path, 1, ann=10)
    score(tmp_path, 2)
    assert kinds() == []
    visit(tmp_path, 3, bob=10, cid=-1)
    with pytest.raises(StageError):
        score(tmp_path, 4)
    assert kinds() == ["alert"]
    assert score(tmp_path, 5).scored_rows == 1
    assert kinds() == ["alert", "recovery"]
    visit(tmp_path, 6, dan=10)
    score(tmp_path, 7)
    assert kinds() == ["alert", "recovery"]


@pytest.mark.parametrize("broken", ["alert_targets", "send_alerts", "document"])
def test_what_cannot_be_told_keeps_no_row_from_quarantine_and_no_good_row_from_its_score(
    tmp_path: Path, broken: str
) -> None:
    async def fails(*_: Any) -> Any:
        raise UsageError("the block holds a number; put URLs into it")

    visit(tmp_path, 1, ann=10, bob=-1)
    with pytest.raises(StageError, match="none of 2 rows was scored"):
        score(tmp_path, 2, **{broken: fails})
    assert aside(tmp_path) == ["bob"]
    assert score(tmp_path, 3, **{broken: fails}).scored_rows == 1


def test_a_batch_of_nothing_but_bad_rows_stops_once_and_then_there_is_nothing_to_do(
    tmp_path: Path, announce: Any, told: Any
) -> None:
    visit(tmp_path, 1, ann=-1, nobody=-2)
    with pytest.raises(StageError, match="none of 2 rows"):
        score(tmp_path, 2, announce=announce)
    assert aside(tmp_path) == [None, "ann"]
    assert score(tmp_path, 3, announce=announce) == flow.ScoreSummary(0, "1", 0)
    assert len(told) == 1


def test_a_changed_contract_tries_what_the_old_one_refused_again(tmp_path: Path) -> None:
    visit(tmp_path, 1, ann=10, bob=5_000)
    with pytest.raises(StageError):
        score(tmp_path, 2)
    assert score(tmp_path, 3).scored_rows == 1
    wider = shop_spec(KEY, BASKET.model_copy(update={"maximum": 10_000}))
    assert score(tmp_path, 4, wider).scored_rows == 1
    assert scored(tmp_path) == ["ann", "bob"]
    # Another contract that refuses it, too, says so under its own name.
    visit(tmp_path, 5, cid=20_000)
    for contract in (wider, shop_spec(KEY, BASKET)):
        with pytest.raises(StageError):
            score(tmp_path, 6, contract)
    kept = open_lake(tmp_path).read(QUARANTINE).filter(pl.col("entity_key") == "cid")
    assert set(kept["contract"]) == {fingerprint(wider.contract), fingerprint(shop_spec().contract)}


def test_a_column_the_features_no_longer_make_stops_the_batch_and_blames_no_row(tmp_path: Path) -> None:
    visit(tmp_path, 1, ann=10)
    gone = shop_spec(KEY, BASKET.model_copy(update={"column": "basket_usd"}))
    findings: list[Finding] = []

    async def send(_: str, __: Any, found: tuple[Finding, ...], *___: Any) -> None:
        findings.extend(found)

    with pytest.raises(StageError, match=r"column 'basket_usd' is missing.*All rows wait"):
        score(tmp_path, 2, gone, send_alerts=send)
    assert [(f.check, f.case) for f in findings] == [("scoring", "columns")], (
        "people are not sent to the source of the rows"
    )
    assert aside(tmp_path) == []
    assert score(tmp_path, 3).scored_rows == 1


def test_a_column_of_another_type_stops_the_batch_and_blames_no_row(tmp_path: Path) -> None:
    visit(tmp_path, 1, ann=10)
    text = shop_spec(KEY).model_copy(
        update={"request_features": lambda f: f.select(pl.col("basket_eur").cast(pl.String))}
    )
    with pytest.raises(StageError, match="column 'basket_eur' is String, but the pipeline says numeric"):
        score(tmp_path, 2, text)
    number = shop_spec(KEY).model_copy(update={"features": (Feature(name="basket_eur", kind="categorical"),)})
    with pytest.raises(StageError, match="column 'basket_eur' is Float64, but the pipeline says categorical"):
        score(tmp_path, 2, number)
    assert aside(tmp_path) == []


def test_a_batch_that_could_not_be_judged_is_not_scored_and_not_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announce: Any, told: Any
) -> None:
    import great_expectations.expectations as gxe

    visit(tmp_path, 1, ann=10)
    # Numbers compared with a date: Great Expectations itself raises.
    asked = gxe.ExpectColumnValuesToBeBetween
    with monkeypatch.context() as broken:
        broken.setattr(
            gxe,
            "ExpectColumnValuesToBeBetween",
            lambda min_value, max_value, **told: asked(min_value=T0, max_value=T0, **told),
        )
        with pytest.raises(StageError, match=r"could not be checked.*All rows wait"):
            score(tmp_path, 2, announce=announce)
    assert [event for event, _ in told] == ["perennial.data.invalid"]
    assert (scored(tmp_path), aside(tmp_path)) == ([], [])
    assert score(tmp_path, 3).scored_rows == 1


def test_a_value_that_is_not_there_is_no_bad_value(tmp_path: Path) -> None:
    visit(tmp_path, 1, ann=None, bob=float("nan"))
    # Nothing could be checked of the baskets; a small batch often has a column without a value.
    assert score(tmp_path, 2).scored_rows == 2


def test_without_rows_there_is_nothing_to_do(tmp_path: Path) -> None:
    visit(tmp_path, 5, ann=10)
    assert score(tmp_path, 2) == flow.ScoreSummary(0, "1", 0)
