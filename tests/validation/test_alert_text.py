"""What people read."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given
from typer.core import TyperGroup
from typer.main import get_command

from perennial.cli import app
from validation.alert_text import ELSE, NEXT, harmless, markdown, text, title
from validation.alerts import Alert, Case, Finding, Kind, Moved, Severity

AT = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
SINCE = datetime(2026, 4, 30, 9, tzinfo=UTC)
MOVED = tuple(Moved(f"column_{n}", f"PSI 0.{n}") for n in (9, 8, 7, 6, 5, 4, 3))
DRIFT = Finding("drift", Severity.WARNING, "7 of 9 columns drifted", MOVED, SINCE, "https://mlflow.example/report")


def alert(finding: Finding = DRIFT, kind: Kind = "alert", decision: str = "no retrain: cooldown") -> Alert:
    return Alert("shop", kind, finding, decision, AT)


def test_the_title_says_how_grave_it_is_whose_and_what() -> None:
    assert title(alert()) == "WARNING shop: drift"
    assert title(alert(kind="reminder")) == "Still: WARNING shop: drift"
    assert title(alert(kind="recovery")) == "Recovered: shop: drift"


def test_the_text_says_what_moved_how_much_since_when_what_was_decided_where_the_report_is_and_what_to_do() -> None:
    lines = text(alert()).splitlines()
    assert lines[:9] == [
        "7 of 9 columns drifted",
        "",
        "What moved:",
        "- column_9: PSI 0.9",
        "- column_8: PSI 0.8",
        "- column_7: PSI 0.7",
        "- column_6: PSI 0.6",
        "- column_5: PSI 0.5",
        "- and 2 more",
    ]
    assert lines[9:14] == [
        "",
        "Since: 2026-04-30 09:00 UTC",
        "As of: 2026-05-01 12:30 UTC",
        "Decision: no retrain: cooldown",
        "Report: https://mlflow.example/report",
    ]
    assert lines[14].startswith("What to do: ")
    assert "perennial retrain shop" in lines[14]
    assert len(lines) == 15


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("wrong", "WARNING shop: drift"),
        ("missing", "WARNING shop: drift"),
        ("watched", "WARNING shop: drift, watched"),
        ("silent", "WARNING shop: drift not judged"),
        ("broken", "WARNING shop: drift could not be checked"),
    ],
)
def test_nobody_takes_for_drift_what_is_none(case: Case, told: str) -> None:
    finding = Finding("drift", Severity.WARNING, "so it is", case=case)
    assert title(alert(finding)) == told
    assert title(alert(finding, "recovery")) == "Recovered: shop: drift"
    do = text(alert(finding)).splitlines()[-1]
    assert ("perennial retrain shop" in do) is (case == "wrong"), "of the rest a retrain learns nothing"


def test_every_kind_of_finding_has_a_next_step_of_its_own() -> None:
    kinds: list[tuple[str, Case]] = [("drift", "missing"), ("drift", "watched"), ("scoring", "columns")]
    cases: tuple[Case, ...] = ("wrong", "silent", "broken")
    kinds += [(check, case) for check in ("data", "drift", "performance") for case in cases]
    kinds += [("scoring", "wrong"), ("scoring", "broken")]
    steps = {
        (check, case): text(alert(Finding(check, Severity.WARNING, "so it is", case=case))).splitlines()[-1]
        for check, case in kinds
    }
    unknown = text(alert(Finding("freshness", Severity.INFO, "old"))).splitlines()[-1]
    assert all(step.startswith("What to do: ") and step != unknown for step in steps.values())
    # What keeps a check from running is the same for all that `monitor` makes.
    alike = {steps[check, "broken"] for check in ("data", "drift", "performance")}
    assert (len(alike), len(set(steps.values()))) == (1, len(kinds) - 2)


@pytest.mark.parametrize("told", sorted({*(do for some in NEXT.values() for do in some.values()), ELSE}))
def test_every_command_that_an_alert_names_is_one(told: str) -> None:
    for named in re.findall("`perennial ([^`]+)`", told.replace("{pipeline}", "shop")):
        words, command = named.split(), get_command(app)
        assert isinstance(command, TyperGroup)
        while isinstance(command, TyperGroup):
            command = command.commands[words.pop(0)]
        command.make_context("perennial", words)  # which refuses what it does not take


def test_a_recovery_says_how_it_is_now_and_asks_for_nothing() -> None:
    over = Finding("drift", Severity.WARNING, "none of 9 columns drifted", since=SINCE)
    assert text(alert(over, "recovery")).splitlines() == [
        "none of 9 columns drifted",
        "",
        "Over at: 2026-05-01 12:30 UTC",
        "Told since: 2026-04-30 09:00 UTC",
        "Decision: no retrain: cooldown",
    ]


def test_what_is_not_known_has_no_line() -> None:
    told = text(alert(Finding("freshness", Severity.INFO, "old"), decision=""))
    assert [line.split(":")[0] for line in told.splitlines()] == ["old", "", "As of", "What to do"]


@pytest.mark.parametrize(
    "name",
    ["*bold*", "_x_", "[click](http://evil)", "`end` code", "# head", "<b>tag</b>", "a\nb", "<!channel>", "@everyone"],
)
def test_in_markdown_names_from_outside_are_code_on_one_line(name: str) -> None:
    told = markdown(alert(Finding("drift", Severity.WARNING, "moved", (Moved(name, "PSI 1"),))))
    line = told.splitlines()[3]
    # One code span, which holds all of it.
    assert re.fullmatch(r"- `[^`]+: PSI 1`", line)


@given(st.text() | st.text(alphabet="@!:/<>= a.`\n"))
def test_no_text_from_outside_breaks_a_line_calls_people_or_is_a_link(told: str) -> None:
    line = harmless(told)
    assert line.isprintable()
    assert not re.search(r"[@!][^\s=]|://", line)
    assert not re.search(r"\w\.[a-z][a-z]", line, re.IGNORECASE)
    assert len(line) - line.count(" ") - 2 * line.count("[") <= 600


def test_what_calls_nobody_is_left_as_it_is() -> None:
    assert harmless("PSI 0.4 >= 0.25 & a != b: 12.0% -> 30.0%!") == "PSI 0.4 >= 0.25 & a != b: 12.0% -> 30.0%!"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("carrier in {AA}: www.evil.example/login", "carrier in {AA}: www[.]evil[.]example/login"),
        ("evil.com", "evil[.]com"),
        ("ask a@b.co.uk.", "ask a@ b[.]co[.]uk."),
        ("=www.evil.com: 1% -> 9%", "=www[.]evil[.]com: 1% -> 9%"),
        ("x1.münchen 9.museum", "x1[.]münchen 9[.]museum"),
        ("evil\u3002com", "evil[\u3002]com"),
        ("\N{PILE OF POO}.la", "\N{PILE OF POO}[.]la"),
    ],
)
def test_a_bare_domain_from_outside_is_no_link(name: str, told: str) -> None:
    assert harmless(name) == told
    assert told in text(alert(Finding("data", Severity.WARNING, name))).splitlines()
    assert f"- `{told}: PSI 1`" in markdown(alert(Finding("drift", Severity.WARNING, "moved", (Moved(name, "PSI 1"),))))


@pytest.mark.parametrize(
    "told",
    ["PSI 0.25, 53.6 %", "1.5e-3 of 12.0", "it failed. See its log.", "and so on...or not", "v1.2b", "./run.", ".x"],
)
def test_numbers_and_sentences_keep_their_dots(told: str) -> None:
    assert harmless(told) == told


def test_the_report_stays_a_link() -> None:
    assert "Report: https://mlflow.example/report" in text(alert()).splitlines()


def test_long_text_is_cut_where_it_says_so() -> None:
    assert harmless("x" * 601) == "x" * 599 + "…"
    assert harmless("x" * 600) == "x" * 600
