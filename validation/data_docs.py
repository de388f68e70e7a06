"""Great Expectations' Data Docs of a pipeline: its contract, and what the newest batches that were told of did not meet.

Great Expectations renders the sections, but neither the pages nor the index. Its own pages load fifteen scripts and style
sheets from other people's servers, without which the index is empty; they put values from the data in as they are, so that
a value can be a script; and a site is built by rendering every result again.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import polars as pl

from perennial.wording import at, counted
from pipelines.spec import PipelineSpec
from validation.contract import Judgement, ValidationResult, fingerprint
from validation.suite import compile_suite
from validation.verdict import Status

MOST_RESULTS = 50
"""Results that are kept, the newest; older pages are deleted."""
RESULT_FILE = "result.json"

# No script runs and nothing is loaded, whatever a value from outside contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1.5rem; color: #1c2430 }
a { color: #0b5cad } h1 { font-size: 1.5rem } h5, h6 { font-size: 1rem; margin: 0 } nav { margin-bottom: 1rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem } th { text-align: left; font-weight: 600 }
th, td { border-bottom: 1px solid #d8dee6; padding: .35rem .6rem; vertical-align: top; overflow-wrap: break-word }
.alert { background: #eef2f7; border-radius: 4px; padding: .6rem .8rem; margin-top: 1rem } .h6 { font-weight: 600 }
.badge { background: #e3e8ef; border-radius: 3px; padding: 0 .3rem } thead[hidden] { display: none }
.row { display: flex; flex-wrap: wrap; gap: 0 1.5rem } .col-12 { flex: 1 0 100% } .col-6 { flex: 1 1 45% }
.fa-times::before, .fa-exclamation-triangle::before { content: "✗" } .fa-check-circle::before, .fa-check::before { content: "✓" }
.text-danger, .FAIL, .ERROR { color: #b3261e } .text-success, .PASS { color: #1a7f37 }
a[data-toggle=collapse] { display: none } [style*=red] { color: inherit !important } td[class] { white-space: nowrap }
.show-scrollbars { max-width: 45rem }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<nav><a href="{{ home }}">All results</a></nav><h1>{{ title }}</h1>
{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}
</body></html>
"""
_NAVIGATION = re.compile(r"<nav>.*?</nav>", re.DOTALL)
_TO_OTHER_PAGES = re.compile(r'<a href="\.\./[^"]*"\s*>(.*?)</a>', re.DOTALL)


@dataclass(frozen=True)
class Listed:
    """A line of the index: where a result's page is, what was judged, when, and how it ended."""

    page: str
    what: str
    moment: str
    status: str
    reason: str


def write_data_docs(folder: Path, spec: PipelineSpec, judged: ValidationResult, what: str, moment: datetime) -> Path:
    """Add a result to a pipeline's Data Docs. The same again replaces it; it and the newest `MOST_RESULTS` stay.

    Args:
        folder: of the site; its `index.html` lists the contract and the results.
        spec: the pipeline.
        judged: the result.
        what: was judged, a word such as `score`.
        moment: the run's clock (UTC).

    Returns:
        The result's page.
    """
    suite = compile_suite(
        spec.name,
        [j.expectation for j in judged.judgements] or spec.contract,
        {f.name: pl.Float64() if f.kind == "numeric" else pl.String() for f in spec.features},
        {f.name: html.escape(f.description) for f in spec.features if f.description},
        html.escape(f"{spec.description} Contract {fingerprint(spec.contract)}."),
    )
    # Where the sections' own links expect them.
    _write(folder / "expectations" / f"{spec.name}.html", _suite_page(suite, spec.name))
    page = folder / "validations" / spec.name / what / f"{moment:%Y%m%dT%H%M%S.%fZ}" / f"{spec.name}.html"
    title = f"{spec.name}, {what}, {at(moment)} UTC: {judged.verdict.status.name}"
    _write(page, _result_page(suite, judged, title, moment, what))
    told = {
        "what": what,
        "moment": at(moment),
        "status": judged.verdict.status.name,
        "reason": judged.verdict.reason,
    }
    # Last: a page without it is not listed, and is written anew by the run that comes again.
    _write(page.with_name(RESULT_FILE), json.dumps(told))
    _write(folder / "index.html", _index_page(spec, _tidied(folder, spec.name, keep=page.parent)))
    return page


def by_itself(page: str) -> str:
    """A result's page without its links to the others, for where they are not, such as among MLflow's artifacts."""
    return _TO_OTHER_PAGES.sub(r"\1", _NAVIGATION.sub("", page, count=1))


def _suite_page(suite: Any, name: str) -> str:
    from great_expectations.render.renderer import ExpectationSuitePageRenderer

    return _page(ExpectationSuitePageRenderer().render(suite), f"{name}: the contract", "../index.html")


def _result_page(suite: Any, judged: ValidationResult, title: str, moment: datetime, what: str) -> str:
    import great_expectations
    from great_expectations.core import ExpectationSuiteValidationResult, RunIdentifier
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    results = [_result(e, j) for e, j in zip(suite.expectations, judged.judgements, strict=False)]
    met = sum(r.success for r in results)
    told = ExpectationSuiteValidationResult(
        success=judged.verdict.status is Status.PASS,
        results=results,
        suite_name=suite.name,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": met,
            "unsuccessful_expectations": len(results) - met,
            "success_percent": 100 * met / len(results) if results else None,
        },
        meta={
            "run_id": RunIdentifier(run_name=what, run_time=moment),
            "great_expectations_version": great_expectations.__version__,
            "batch_kwargs": {"data_asset_name": what},
        },
    )
    body = _page(ValidationResultsPageRenderer().render(told), title, "../../../../index.html")
    return body.replace("</h1>", f"</h1><p>{html.escape(judged.verdict.reason)}</p>", 1)


def _result(expectation: Any, judgement: Judgement) -> Any:
    """A judgement in Great Expectations' words, so that it renders what we found, in all slices together."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

    rows = judgement.checked_rows + judgement.missing_rows
    # It writes values as they are.
    examples = [(html.escape(value), count) for value, count in judgement.examples]
    result: dict[str, Any] = {
        # It writes a share of the rows that have a value as one of this number.
        "element_count": judgement.checked_rows,
        "missing_count": judgement.missing_rows,
        "missing_percent": _percent(judgement.missing_rows, rows),
        "unexpected_count": judgement.failed_rows,
        "unexpected_percent": _percent(judgement.failed_rows, judgement.checked_rows),
        "unexpected_percent_total": _percent(judgement.failed_rows, rows),
        "unexpected_percent_nonmissing": _percent(judgement.failed_rows, judgement.checked_rows),
        "partial_unexpected_list": [value for value, _ in examples],
        "partial_unexpected_counts": [{"value": value, "count": count} for value, count in examples],
    }
    return ExpectationValidationResult(
        success=judgement.verdict.status is Status.PASS,
        expectation_config=expectation.configuration,
        result=result,
    )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _page(document: Any, title: str, home: str) -> str:
    """Great Expectations' sections on a page of our own."""
    told = {**document.to_json_dict(), "title": title, "home": home, "policy": POLICY}
    # Its style sheet is no text of ours to be escaped.
    return str(_template().render({**told, "style": _Markup(STYLE)}))


@lru_cache(maxsize=1)
def _template() -> Any:
    """Made once a process: reading Great Expectations' templates takes longer than filling them in."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView().env.from_string(PAGE)


class _Markup(str):
    """Text that Jinja takes as HTML."""

    def __html__(self) -> str:
        return self


def _index_page(spec: PipelineSpec, results: Sequence[Listed]) -> str:
    lines = [
        f'<tr><td class="moment"><a href="{html.escape(quote(r.page))}">{html.escape(r.moment)}</a></td>'
        f'<td>{html.escape(r.what)}</td><td class="{html.escape(r.status)}">{html.escape(r.status)}</td>'
        f"<td>{html.escape(r.reason)}</td></tr>"
        for r in results
    ]
    name = html.escape(spec.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Data Docs of {name}</title>'
        f"<style>{STYLE}</style></head><body><h1>Data Docs of {name}</h1><p>{html.escape(spec.description)}</p>"
        f'<p>Expectation suite: <a href="expectations/{name}.html">{name}</a>, contract {fingerprint(spec.contract)}</p>'
        f"<h2>{counted(len(results), 'result')}, newest first</h2><table><thead><tr><th>moment (UTC)</th><th>judged</th>"
        f"<th>verdict</th><th>reason</th></tr></thead><tbody>{''.join(lines)}</tbody></table></body></html>\n"
    )


def _tidied(folder: Path, name: str, keep: Path) -> list[Listed]:
    """The results there are, newest first, without those that are too many, which are deleted.

    The one in `keep` stays however old its moment is: a replay of history has just written it, and people are about to
    be sent there.
    """
    found = sorted(
        (folder / "validations" / name).glob(f"*/*/{RESULT_FILE}"), key=lambda f: f.parent.name, reverse=True
    )
    listed = []
    for number, file in enumerate(found):
        if number >= MOST_RESULTS and file.parent != keep:
            shutil.rmtree(file.parent, ignore_errors=True)
            continue
        try:
            told: Mapping[str, str] = json.loads(file.read_text())
        except FileNotFoundError:  # another run has deleted it meanwhile
            continue
        listed.append(Listed(str((file.parent / f"{name}.html").relative_to(folder)), **told))
    return listed


def _write(path: Path, text: str) -> None:
    """Whole or not at all, whoever reads or writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
