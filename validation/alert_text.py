"""An alert as people read it, as plain text and as Markdown.

Names of columns and categories come from outside. In Markdown they are code, which no reader of it takes for formatting;
and nowhere may they call people by name or become links.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from validation.alerts import Alert, Case, Kind

MOST_MOVED = 5
"""How many of the things that moved a message names."""
MOST_CHARACTERS = 600

HEADS: dict[Kind, str] = {"alert": "", "reminder": "Still: ", "recovery": "Recovered: "}
TITLES: dict[Case, str] = {"watched": ", watched", "silent": " not judged", "broken": " could not be checked"}
"""What follows the check's name, so that nobody takes for drift what is none."""

NEXT: Mapping[str, Mapping[Case, str]] = {
    "data": {
        "wrong": "Mend the source of these rows or, if they are right, the contract. `perennial contract quarantine "
        "{pipeline}` lists the rows that were put aside. Until then nothing is trained on them.",
        "silent": "Look whether events still come in and are scored: `perennial ingest {pipeline}`, then `perennial "
        "score {pipeline}`. Until then nobody knows whether rows meet the contract.",
    },
    "scoring": {
        "wrong": "Mend the source of these rows or, if they are right, the contract. What waits is scored by the next "
        "run whose rows meet it.",
        "columns": "The rows may be fine: mend the code that makes these columns or, if they are right, the contract. "
        "The next run scores what waits.",
        "broken": "See the log of the run, and mend what it names. The next run scores what waits.",
    },
    "drift": {
        "wrong": "Look whether the source broke or the world moved. A broken source is mended there; a world that moved "
        "is learned by a retrain: `perennial retrain {pipeline}` does it now.",
        "missing": "Look at the source first, since all that changed is that values are missing. Once it is mended, this "
        "ends by itself when the newest rows have values again. A retrain would only learn to do without them.",
        "watched": "Nothing yet. `perennial drift {pipeline}` shows how it is now; you are told if it becomes drift.",
        "silent": "Nothing is known to have moved, so a retrain is no answer. Look whether events still come in and are "
        "scored; `perennial drift {pipeline}` says of each column why it cannot be judged.",
    },
    "performance": {
        "wrong": "Look at what else moved. `perennial retrain {pipeline}` fits a candidate now; if the model is the "
        "mistake, `perennial rollback {pipeline} --reason WHY` returns to the one before it.",
        "silent": "Look whether labels still come in: `perennial monitor {pipeline}` counts those that came and those "
        "that wait. Until then nobody knows how good the model is.",
    },
    "test": {"wrong": "Nothing; alerts arrive here."},
}
BROKEN = (
    "See the log of the run `monitor {pipeline}` in Prefect, and mend what it names. Until the check can run, nobody is told of "
    "what it looks for."
)
ELSE = "`perennial monitor {pipeline}` shows how it is now."
# What chat programs take for a mention or a link: @name, !channel, https://. A blank within ends that.
_CALLS = re.compile(r"[@!](?=[^\s=])|:(?=//)")
# They and mail readers take www.name.example for a link as well, and browsers any full stop for its dot. What follows the
# last one of a domain begins with two letters, which no decimal fraction does.
_DOMAIN_DOT = re.compile(r"(?<=[\w\x80-\U0010ffff])[.\u3002\uff0e\uff61](?=[^\W\d_](?:[^\W\d_]|[^\x00-\x7f]))")


def title(alert: Alert) -> str:
    """One line: how grave, whose, what."""
    severity = "" if alert.kind == "recovery" else f"{alert.finding.severity.name} "
    case = "" if alert.kind == "recovery" else TITLES.get(alert.finding.case, "")
    return f"{HEADS[alert.kind]}{severity}{harmless(alert.pipeline)}: {harmless(alert.finding.check)}{case}"


def text(alert: Alert) -> str:
    """The message as plain text."""
    return _body(alert, code=False)


def markdown(alert: Alert) -> str:
    """The message as Markdown that Slack, Discord and CommonMark read alike: only code and lists."""
    return _body(alert, code=True)


def harmless(told: str, most: int = MOST_CHARACTERS) -> str:
    """Text from outside on one line: nothing that does not print, calls people or is a link; cut to `most` characters."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told)
    if len(line) > most:
        line = f"{line[: most - 1]}…"
    return _DOMAIN_DOT.sub(r"[\g<0>]", _CALLS.sub(lambda found: f"{found[0]} ", line))


def _body(alert: Alert, code: bool) -> str:
    finding = alert.finding

    def outside(told: str) -> str:
        line = harmless(told)
        # Nothing escapes a backtick within code that all of these readers know.
        return f"`{line.replace('`', chr(39))}`" if code else line

    lines = [outside(finding.headline)]
    if finding.moved:
        lines += ["", "What moved:", *(f"- {outside(f'{m.name}: {m.how}')}" for m in finding.moved[:MOST_MOVED])]
        more = len(finding.moved) - MOST_MOVED
        lines += [f"- and {more} more"] if more > 0 else []
    lines.append("")
    if alert.kind == "recovery":
        lines += [f"Over at: {_at(alert.as_of)}"]
        lines += [f"Told since: {_at(finding.since)}"] if finding.since else []
    else:
        lines += [f"Since: {_at(finding.since)}"] if finding.since else []
        lines += [f"As of: {_at(alert.as_of)}"]
    lines += [f"Decision: {outside(alert.decision)}"] if alert.decision else []
    lines += [f"Report: {finding.link}"] if finding.link else []
    if alert.kind != "recovery":
        otherwise = BROKEN if finding.case == "broken" else ELSE
        do = NEXT.get(finding.check, {}).get(finding.case, otherwise).format(pipeline=alert.pipeline)
        lines += [f"What to do: {do if code else do.replace('`', '')}"]
    return "\n".join(lines)


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
