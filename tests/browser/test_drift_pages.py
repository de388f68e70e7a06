"""The drift report in headless Chromium: what a person sees who follows the link of an alert."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from moved_world import FEATURES, World, world
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from flows import report
from flows.report import ReportLinks
from perennial.settings import Settings
from rollout.ledger import Model
from validation.reference_sample import REFERENCE_SAMPLE_FILE, write_reference_sample

pytestmark = pytest.mark.browser
AS_OF = datetime(2026, 1, 8, 3, tzinfo=UTC)
SHOWN_WITHIN_S = 60


@pytest.fixture(scope="module")
def it() -> World:
    return world()


@pytest.fixture(scope="module")
def links(it: World, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> ReportLinks:
    """A report of a champion monitored for ten days."""
    place = tmp_path_factory.mktemp("report")
    columns = [*(f.name for f in FEATURES), "score"]
    (place / REFERENCE_SAMPLE_FILE).write_bytes(write_reference_sample(it.before, columns, seed=1))
    model, settings = Model("7", place.as_uri()), Settings(home=place / "home", mlflow_tracking_uri=mlflow_server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "open_context", lambda _: SimpleNamespace(settings=settings))
        for days in range(10):
            found, at = world(moved=0.1 * days, n=500 + 5 * days).drift, AS_OF - timedelta(days=9 - days)
            told = asyncio.run(report.record_metrics.fn("shown", found, {"drift": found.verdict}, model, at))
            assert told == ()
        made = asyncio.run(report.write_report.fn("shown", it.drift, it.now, model, AS_OF))
    assert isinstance(made, ReportLinks)
    assert made.note == ""
    return made


def until(browser: Chrome, *texts: str) -> None:
    def all_there(_: object) -> bool:
        # Where a page breaks its lines depends on its width.
        body = " ".join(browser.find_element(By.TAG_NAME, "body").text.split())
        return all(" ".join(text.split()) in body for text in texts)

    try:
        WebDriverWait(browser, SHOWN_WITHIN_S).until(all_there)
    except Exception:
        keep(browser, "failed")
        raise


def keep(browser: Chrome, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_the_page_shows_its_plots_and_runs_nothing_from_a_category(
    browser: Chrome, links: ReportLinks, it: World
) -> None:
    assert links.path is not None
    browser.get(links.path.as_uri())
    until(browser, "The data has moved: shown", "Columns, worst first", *(f.feature for f in it.drift.features))
    keep(browser, "drift-page")
    drawn = browser.find_elements(By.TAG_NAME, "img")
    assert len(drawn) == 3
    sizes = [browser.execute_script("return arguments[0].naturalWidth", image) for image in drawn]
    assert all(width > 800 for width in sizes)
    # Nothing sticks out at the side, on a telephone neither.
    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    keep(browser, "drift-page-narrow")
    browser.set_window_size(1400, 1000)
    assert browser.title == "The data has moved: shown"


def test_evidently_is_one_link_away_and_so_is_the_way_back(browser: Chrome, links: ReportLinks) -> None:
    assert links.path is not None
    browser.get(links.path.as_uri())
    browser.find_element(By.LINK_TEXT, "evidently.html").click()
    until(browser, "Drift is detected", "delay", "carrier")
    note = browser.find_element(By.CSS_SELECTOR, "[role=note]")
    assert "not perennial's verdict" in note.text
    assert note.location["y"] == 0, "it stands above everything"
    assert note.size["width"] > 1_000
    keep(browser, "evidently")
    assert "broken in" not in browser.title
    browser.find_element(By.LINK_TEXT, "What moved, and by how much").click()
    until(browser, "Columns, worst first")


def test_the_link_of_an_alert_opens_the_report_in_mlflow(browser: Chrome, links: ReportLinks) -> None:
    browser.get(str(links.mlflow))
    until(browser, "version 7", "drift.html", "evidently.html")
    frame = WebDriverWait(browser, SHOWN_WITHIN_S).until(lambda b: b.find_element(By.TAG_NAME, "iframe"))
    browser.switch_to.frame(frame)
    until(browser, "The data has moved: shown")
    browser.switch_to.default_content()
    keep(browser, "mlflow-artifacts")


def test_mlflow_charts_what_was_found_over_time(browser: Chrome, links: ReportLinks) -> None:
    browser.get(str(links.mlflow).split("/artifacts/")[0] + "/model-metrics")
    until(browser, "missing_rate (4)", "version 7 (missing_rate/delay)")
    keep(browser, "mlflow-charts")
