"""Data Docs in headless Chromium, as a person opens them: from a file, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from perennial.template.pipeline import PIPELINE
from validation.contract import validate
from validation.data_docs import write_data_docs

pytestmark = pytest.mark.browser
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def offline() -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and ChromeDriver (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


def text(browser: Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def test_from_the_index_to_the_result_and_the_contract_without_a_network(offline: Chrome, tmp_path: Path) -> None:
    fine = {f.name: [1.0] * 3 if f.kind == "numeric" else ["hat", HOSTILE, HOSTILE] for f in PIPELINE.features}
    rows = pl.DataFrame({"entity_key": ["o1", "o2", "o3"], **fine})
    judged = validate(rows, PIPELINE.contract, PIPELINE.name)
    write_data_docs(tmp_path, PIPELINE, judged, "score", datetime(2026, 1, 8, tzinfo=UTC))
    offline.get((tmp_path / "index.html").as_uri())
    assert judged.verdict.reason in text(offline)
    offline.find_element(By.LINK_TEXT, "2026-01-08 00:00:00").click()
    assert "2 unexpected values found" in text(offline)
    assert HOSTILE in text(offline), "a value is shown as it is"
    assert offline.title == "pipeline_name, score, 2026-01-08 00:00:00 UTC: FAIL"
    if folder := os.environ.get("SCREENSHOTS"):
        offline.save_screenshot(str(Path(folder) / "data_docs.png"))
    offline.find_element(By.LINK_TEXT, PIPELINE.name).click()
    assert "values must belong to this set" in text(offline)
    offline.find_element(By.LINK_TEXT, "All results").click()
    assert "1 result, newest first" in text(offline)
    assert offline.get_log("browser") == [], "nothing was refused, because nothing was asked for"
