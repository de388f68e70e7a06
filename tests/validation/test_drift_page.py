"""The page of an alert: whole by itself, worst first, bounded, and nothing from outside is code in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

from moved_world import EVIL, World, rows, world

from pipelines.spec import DriftPolicy, Feature
from validation.drift import DriftVerdict, detect_drift
from validation.drift_page import MAX_PLOTS, MAX_TABLE_ROWS, PageFacts, drift_page, plotted
from validation.profile import build_reference, profile
from validation.windows import Window

AS_OF = datetime(2026, 1, 8, tzinfo=UTC)
FACTS = PageFacts("flights", "7", AS_OF, evidently=True)


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(it: World, facts: PageFacts = FACTS) -> Page:
    return Page(drift_page(it.drift, facts))


def test_the_page_says_what_moved_and_draws_each_column_that_did_and_the_score() -> None:
    it = world()
    page = page_of(it)
    text = " ".join(page.text)
    assert "The data has moved: flights" in text
    assert it.drift.verdict.reason in text
    moved = [f.feature for f in it.drift.features if f.feature != "steady"]
    assert [(image["alt"] or "").split(":")[0] for image in page.all("img")] == moved
    assert "version 7" in text
    assert "2026-01-08 00:00 UTC" in text
    assert [link["href"] for link in page.all("a")] == ["evidently.html"]


def test_nothing_is_loaded_from_elsewhere_and_nothing_from_outside_is_code() -> None:
    page = page_of(world(), replace(FACTS, pipeline=EVIL, model=EVIL, notes=(EVIL,)))
    assert page.all("script") == []
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert page.all("link") == []
    assert EVIL in "".join(page.text)  # as text


def test_without_evidently_there_is_no_link_and_the_page_says_why() -> None:
    page = page_of(world(), replace(FACTS, evidently=False, notes=("Evidently's page is not here: no rows.",)))
    assert page.all("a") == []
    assert "Evidently's page is not here: no rows." in " ".join(page.text)


def test_a_thousand_columns_give_a_page_of_bounded_size_that_says_what_it_leaves_out() -> None:
    many = [f"c{i}" for i in range(300)]
    before, now = (
        rows(600, seed, moved).select("score", *(rows(600, seed, moved)["delay"].alias(c) for c in many))
        for seed, moved in ((1, 0.0), (2, 1.0))
    )
    reference = build_reference(before, [Feature(name=c, kind="numeric") for c in many], DriftPolicy())
    current = profile(now, reference)
    drift = detect_drift(reference, [Window.of_rows(current)], DriftPolicy())
    page = Page(drift_page(drift, FACTS))
    assert len(page.all("img")) == MAX_PLOTS
    assert "score" in [f.feature for f in plotted(drift)]
    assert (
        f"The worst {MAX_PLOTS} are drawn; {len(drift.drifted) + len(drift.watched) - MAX_PLOTS} more moved."
        in " ".join(page.text)
    )
    assert f"{301 - MAX_TABLE_ROWS} more columns moved less." in page.text


def test_too_few_rows_are_told_and_only_the_score_is_drawn() -> None:
    it = world(n=100)
    page = page_of(it)
    assert "Too little data to tell whether the data has moved: flights" in page.text
    assert len(page.all("img")) == 1


def test_without_columns_the_page_stands() -> None:
    it = world()
    page = page_of(replace(it, drift=DriftVerdict(it.drift.verdict, ())))
    assert "There are none." in page.text
