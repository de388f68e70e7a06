from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from perennial.template.pipeline import PIPELINE
from validation import data_docs
from validation.contract import ValidationResult, validate
from validation.data_docs import RESULT_FILE, by_itself, write_data_docs

NOW = datetime(2026, 1, 8, 12, 30, tzinfo=UTC)
HOSTILE = "<script>alert('owned')</script><img src=x onerror=alert(1)> $PARAM %s {{7*7}}"


def orders(**changed: object) -> pl.DataFrame:
    fine = {f.name: [1.0] * 4 if f.kind == "numeric" else ["hat"] * 4 for f in PIPELINE.features}
    return pl.DataFrame({"entity_key": ["o1", "o2", "o3", "o4"], **fine, **changed})


def judged(**changed: object) -> ValidationResult:
    return validate(orders(**changed), PIPELINE.contract, PIPELINE.name)


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str]:
        return [href for _, found in self.tags if (href := found.get("href")) and not href.startswith("#")]


def pages(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.html"))


def test_the_index_lists_the_contract_and_the_results_newest_first(tmp_path: Path) -> None:
    write_data_docs(tmp_path, PIPELINE, judged(), "monitor", NOW)
    write_data_docs(tmp_path, PIPELINE, judged(price_eur=[1.0, 2.0, -3.0, -4.0]), "score", NOW + timedelta(hours=1))
    index = Page(tmp_path / "index.html")
    newer, older = index.text.index("2026-01-08 13:30:00"), index.text.index("2026-01-08 12:30:00")
    assert newer < older
    assert "price_eur between 0 and 10000 fails in 2 of 4 rows (50.00% met, 99.00% due)" in index.text[newer:older]
    assert PIPELINE.description in index.text


def test_every_link_of_every_page_leads_to_a_page(tmp_path: Path) -> None:
    write_data_docs(tmp_path, PIPELINE, judged(product=["sofa"] * 4), "score", NOW)
    assert len(pages(tmp_path)) == 3
    for page in pages(tmp_path):
        links = Page(page).links()
        assert links
        for link in links:
            assert (page.parent / link).resolve() in pages(tmp_path), f"{page}: {link}"


def test_a_result_says_how_many_rows_failed_and_with_which_values(tmp_path: Path) -> None:
    page = write_data_docs(tmp_path, PIPELINE, judged(price_eur=[1.0, None, -3.0, -3.0]), "score", NOW)
    text = re.sub(r"\s+", " ", Page(page).text)
    # Of the 3 prices that are there.
    assert "2 unexpected values found. ≈66.67% of 3 total rows." in text
    assert "-3.0" in text


def test_what_the_contract_expects_is_shown_with_what_each_column_is(tmp_path: Path) -> None:
    write_data_docs(tmp_path, PIPELINE, judged(), "monitor", NOW)
    text = re.sub(r"\s+", " ", Page(tmp_path / "expectations" / f"{PIPELINE.name}.html").text)
    assert "values must match this regular expression: \\A(?:o[0-9]+)\\Z" in text
    assert "of the whole order, EUR" in text


def test_a_value_from_outside_is_text_on_every_page(tmp_path: Path) -> None:
    found = judged(product=[HOSTILE] * 4, entity_key=[HOSTILE] * 4)
    page = write_data_docs(tmp_path, PIPELINE, found, "score", NOW)
    assert HOSTILE in Page(page).text
    for path in pages(tmp_path):
        tags = Page(path).tags
        assert not [t for t, _ in tags if t in ("script", "img")], path
        assert not [a for _, told in tags for a in told if a.startswith("on")], path


def test_pages_load_nothing_and_run_nothing(tmp_path: Path) -> None:
    write_data_docs(tmp_path, PIPELINE, judged(), "monitor", NOW)
    for path in pages(tmp_path):
        found = Page(path)
        assert not [t for t, _ in found.tags if t in ("script", "link", "iframe")]
        assert not [v for _, told in found.tags for v in told.values() if v and v.startswith(("http", "//"))]
        policy = next(
            told["content"] for tag, told in found.tags if told.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'" in str(policy)
        assert "script-src" not in str(policy)


def test_only_the_newest_results_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_docs.MOST_RESULTS == 50
    monkeypatch.setattr(data_docs, "MOST_RESULTS", 5)
    found = judged()
    for minute in range(7):
        write_data_docs(tmp_path, PIPELINE, found, ("monitor", "score")[minute % 2], NOW + timedelta(minutes=minute))
    kept = sorted(f.parent.name for f in tmp_path.rglob(RESULT_FILE))
    assert len(kept) == 5
    assert kept[0] == "20260108T123200.000000Z"
    assert len(pages(tmp_path)) == 5 + 2
    assert "5 results" in Page(tmp_path / "index.html").text


def test_a_result_that_was_just_written_stays_however_old_its_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_docs, "MOST_RESULTS", 2)
    found = judged()
    for hours in (5, 6, 7):
        write_data_docs(tmp_path, PIPELINE, found, "score", NOW + timedelta(hours=hours))
    replayed = write_data_docs(tmp_path, PIPELINE, found, "monitor", NOW)
    assert replayed.exists()
    assert "3 results, newest first" in Page(tmp_path / "index.html").text
    assert (tmp_path / Page(tmp_path / "index.html").links()[-1]) == replayed
    write_data_docs(tmp_path, PIPELINE, found, "score", NOW + timedelta(hours=8))
    assert not replayed.exists()


def test_a_page_by_itself_says_the_same_and_links_nowhere(tmp_path: Path) -> None:
    page = write_data_docs(tmp_path, PIPELINE, judged(product=[HOSTILE] * 4), "score", NOW)
    alone = tmp_path / "alone.html"
    alone.write_text(by_itself(page.read_text(encoding="utf-8")), encoding="utf-8")
    assert Page(page).links()
    assert Page(alone).links() == []
    assert Page(alone).text.split() == Page(page).text.replace("All results", "", 1).split()
    assert not [t for t, _ in Page(alone).tags if t in ("script", "img")]


def test_the_same_result_again_takes_its_own_place(tmp_path: Path) -> None:
    first = write_data_docs(tmp_path, PIPELINE, judged(), "score", NOW)
    assert write_data_docs(tmp_path, PIPELINE, judged(), "score", NOW) == first
    assert "1 result, newest first" in Page(tmp_path / "index.html").text
    assert not list(tmp_path.rglob(".*")), "nothing half written is left"


@pytest.mark.parametrize(
    "batch",
    [
        orders().clear(),
        orders().drop("product"),
        orders(price_eur=["dear"] * 4),
        orders(price_eur=[None] * 4),
        orders().head(1),
        orders(price_eur=[float("inf"), float("-inf"), float("nan"), 0.0]),
    ],
    ids=["no rows", "a column less", "another type", "nothing there", "one row", "infinities"],
)
def test_whatever_a_batch_is_like_its_verdict_has_a_page(tmp_path: Path, batch: pl.DataFrame) -> None:
    found = validate(batch, PIPELINE.contract, PIPELINE.name)
    page = write_data_docs(tmp_path, PIPELINE, found, "score", NOW)
    assert found.verdict.status.name in Page(page).text
    assert found.verdict.reason in Page(page).text
