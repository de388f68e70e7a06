"""Data Docs in headless Chromium, as a person opens them: from a file without a network, and in MLflow from an alert."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from flows.report import put_into_mlflow
from perennial.template.pipeline import PIPELINE
from validation.contract import ValidationResult, validate
from validation.data_docs import by_itself, write_data_docs

pytestmark = pytest.mark.browser
MOMENT = datetime(2026, 1, 8, tzinfo=UTC)
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def text(browser: Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def judged_with(product: str) -> ValidationResult:
    fine = {f.name: [1.0] * 3 if f.kind == "numeric" else ["hat", product, product] for f in PIPELINE.features}
    return validate(pl.DataFrame({"entity_key": ["o1", "o2", "o3"], **fine}), PIPELINE.contract, PIPELINE.name)


def test_the_link_of_an_alert_opens_the_page_in_mlflow(browser: Chrome, mlflow_server: str, tmp_path: Path) -> None:
    page = write_data_docs(tmp_path / "site", PIPELINE, judged_with(HOSTILE), "score", MOMENT)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / page.name).write_text(by_itself(page.read_text(encoding="utf-8")), encoding="utf-8")
    shared = put_into_mlflow(mlflow_server, PIPELINE.name, "3", alone, "data_docs/score/now")
    browser.get(f"{shared.link}/{page.name}")
    waiting = WebDriverWait(browser, 60)
    browser.switch_to.frame(waiting.until(lambda b: b.find_element(By.TAG_NAME, "iframe")))
    waiting.until(lambda b: "2 unexpected values found" in text(b))
    assert HOSTILE in text(browser)
    heading = browser.find_element(By.TAG_NAME, "h1")
    assert heading.value_of_css_property("font-size") == "24px", "it has its style"
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / "data_docs_mlflow.png"))


def test_from_the_index_to_the_result_and_the_contract_without_a_network(offline: Chrome, tmp_path: Path) -> None:
    judged = judged_with(HOSTILE)
    write_data_docs(tmp_path, PIPELINE, judged, "score", MOMENT)
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
