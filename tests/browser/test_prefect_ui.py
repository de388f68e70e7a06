"""The Prefect UI in headless Chromium: what a person sees after two weeks of flights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from two_weeks import Told

from validation.report import escaped

pytestmark = [pytest.mark.stack, pytest.mark.browser]
SHOWN_WITHIN_S = 40


@pytest.fixture
def shows(browser: Chrome, two_weeks: Told, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Open a page of the UI and wait until it shows all of these texts; the page's text."""
    root = two_weeks.stack.addresses["prefect_api_url"].removesuffix("/api")

    def look(path: str, *texts: str) -> str:
        browser.get(root + path)

        def all_there(_: object) -> bool:
            body = browser.find_element(By.TAG_NAME, "body").text
            return all(text in body for text in texts)

        try:
            WebDriverWait(browser, SHOWN_WITHIN_S).until(all_there)
        finally:
            if folder := os.environ.get("SCREENSHOTS"):
                browser.save_screenshot(str(Path(folder) / f"{request.node.name}.png"))
        return str(browser.find_element(By.TAG_NAME, "body").text)

    return look


def api(told: Told, path: str, **query: object) -> list[dict[str, object]]:
    answer = httpx.post(f"{told.stack.addresses['prefect_api_url']}/{path}", json=query, timeout=20)
    answer.raise_for_status()
    found: list[dict[str, object]] = answer.json()
    return found


def test_the_runs_of_every_flow_are_shown(shows: Callable[..., str]) -> None:
    shows("/runs", "ingest two_weeks", "monitor two_weeks", "score two_weeks")


def test_the_alert_s_artifact_says_what_moved_and_what_was_decided(shows: Callable[..., str], two_weeks: Told) -> None:
    alert = next(a for a in two_weeks.figures.drift_alerts if a["check"] == "drift")
    found = api(two_weeks, "artifacts/filter", artifacts={"key": {"any_": ["monitor-two-weeks"]}}, sort="CREATED_DESC")
    said = next(a for a in found if escaped(alert["reason"]) in str(a["data"]).replace("\\\\", "\\"))
    shows(f"/artifacts/artifact/{said['id']}", "drift: FAIL", "columns drifted", "Decision.", "PSI")


def test_the_table_of_columns_is_no_wider_than_its_page(
    shows: Callable[..., str], browser: Chrome, two_weeks: Told
) -> None:
    found = api(two_weeks, "artifacts/filter", artifacts={"key": {"any_": ["drift-two-weeks"]}}, sort="CREATED_DESC")
    shows(f"/artifacts/artifact/{found[0]['id']}", "column", "importance", "since", "aircraft_arrival_delay_last_24h")
    frame = browser.find_element(By.CSS_SELECTOR, ".p-table")
    assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", frame)


def test_the_automation_that_started_the_retrain_is_shown(shows: Callable[..., str]) -> None:
    shows("/automations", "retrain flights when monitoring asks for it", "roll out an accepted candidate")


def test_the_retrain_run_says_that_an_automation_made_it(shows: Callable[..., str], two_weeks: Told) -> None:
    runs = api(two_weeks, "flow_runs/filter", flows={"name": {"any_": ["retrain"]}})
    made = next(r for r in runs if (r["created_by"] or {}).get("type") == "AUTOMATION")  # type: ignore[attr-defined]
    shows(f"/runs/flow-run/{made['id']}", "retrain two_weeks", "Completed")


def test_the_retrain_can_be_started_from_its_typed_form(shows: Callable[..., str], two_weeks: Told) -> None:
    found = api(two_weeks, "deployments/filter", flows={"name": {"any_": ["retrain"]}})
    page = shows(f"/deployments/deployment/{found[0]['id']}/run", "pipeline", "as_of", "family", "reason", "force")
    assert "Name of the pipeline" in page
