"""Messages to where people look: Slack, mail, webhooks, SNS and whatever else apprise knows by URL.

The only module that touches apprise. Its URLs hold passwords and tokens, as do its log lines and those of the HTTP client
below it; nothing of either leaves this module. A target is named by its schema, by its host where that is one, and by
four letters that come of its whole URL.
"""

from __future__ import annotations

import hashlib
import http
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from perennial.errors import UsageError
from validation.alert_text import markdown, text, title
from validation.alerts import Alert, Severity

DEADLINE_S = 30.0
"""A target that has not taken all its messages by then is left alone; apprise gives up a silent connection after 4 s."""
# Of every other schema, what stands in the place of the host is a token, or may be one.
HOST_IS_NO_SECRET = frozenset(f"{name}{s}" for name in ("form", "json", "mailto", "xml") for s in ("", "s"))
# The letters of a name: enough to tell a handful of URLs apart. Whoever reads them may try passwords against them if he
# knows the rest of the URL, so each try is slow, and of 65,536 wrong passwords one fits. A service's token, which nobody
# guesses, stays as unknown as it was.
MARK_BYTES, MARK_ROUNDS = 2, 200_000
TALKATIVE = ("apprise", "urllib3", "requests")
_BETWEEN = re.compile(r",?\s+|,(?=[A-Za-z][A-Za-z0-9]*://)")
_SCHEMA = re.compile(r"([A-Za-z][A-Za-z0-9]{0,31})://")


@dataclass(frozen=True)
class Target:
    """Somewhere messages go.

    Attributes:
        name: without secrets, of its URL alone: what others there are does not matter, so that what it was told stays
            its own. A URL that was changed is another target. No two that are opened together share a name.
        plugin: apprise's.
    """

    name: str
    plugin: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Delivery:
    """What became of one message to one target.

    Attributes:
        target: name of the target.
        alert: the message.
        refusal: why it was not taken, as a clause without secrets; None = it was.
    """

    target: str
    alert: Alert
    refusal: str | None


def split_urls(told: str) -> tuple[SecretStr, ...]:
    """URLs of a setting: parted by blanks, or by a comma where a schema follows, since a URL may hold commas."""
    return tuple(SecretStr(url) for url in _BETWEEN.split(told.strip(", \t\n")) if url)


def open_targets(urls: Sequence[SecretStr]) -> tuple[tuple[Target, ...], tuple[UsageError, ...]]:
    """The targets of some URLs, and a sentence for each URL that is none: a mistake in one must not silence the others.

    A URL that is there twice gets a number the second time, as would one in 65,536 that has another's letters.
    """
    found: list[Target] = []
    mistakes: list[UsageError] = []
    names: Counter[str] = Counter()
    for position, url in enumerate(urls, start=1):
        try:
            target = open_target(url, position)
        except UsageError as mistake:
            mistakes.append(mistake)
            continue
        names[target.name] += 1
        number = names[target.name]
        found.append(target if number == 1 else Target(f"{target.name} {number}", target.plugin))
    return tuple(found), tuple(mistakes)


def open_target(url: SecretStr, position: int) -> Target:
    """The target of one URL. Nothing is sent.

    Args:
        url: as apprise writes it.
        position: of the URL among all, from 1, for the sentence.

    Raises:
        UsageError: apprise cannot use the URL. The sentence does not repeat it.
    """
    import apprise

    # A redirected message is not delivered: the answer would be that of a login page.
    asset = apprise.AppriseAsset(app_id="perennial", app_desc="perennial", http_redirects=False)
    plugin = None
    with _Withholding(), suppress(Exception):  # whatever its parser stumbles over, with the URL in its words
        plugin = apprise.Apprise.instantiate(url.get_secret_value(), asset=asset)
    if plugin is None:
        raise UsageError(_mistake(url.get_secret_value(), position))
    plugin.optional = False  # `optional=yes` would call a refusal a success
    # A URL that a service hands out, such as https://hooks.slack.com/..., has another schema than its plugin.
    schemas = _schemas(plugin)
    given = _schema(url.get_secret_value())
    schema = given if given in schemas else schemas[0]
    host = ""
    if schema in HOST_IS_NO_SECRET:
        host = f"{plugin.host}:{plugin.port}" if plugin.port else str(plugin.host)
    return Target(f"{schema}://{host} #{_mark(url.get_secret_value())}", plugin)


def send(messages: Mapping[Target, Sequence[Alert]]) -> tuple[Delivery, ...]:
    """Send each target its messages: targets at the same time, the messages of one in their order.

    Returns within DEADLINE_S, and a little for apprise's own work. What a target has not taken by then counts as
    refused, and may still arrive.
    """
    done: dict[tuple[Target, int], str | None] = {}

    def work(target: Target, alerts: Sequence[Alert]) -> None:
        for number, alert in enumerate(alerts):
            done[target, number] = _send(target.plugin, alert)

    # Daemons: a target that never answers must not keep the process from ending.
    threads = [threading.Thread(target=work, args=one, daemon=True) for one in messages.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"it did not answer within {DEADLINE_S:g} s"
    return tuple(
        Delivery(target.name, alert, done.get((target, number), late))
        for target, alerts in messages.items()
        for number, alert in enumerate(alerts)
    )


def _send(plugin: Any, alert: Alert) -> str | None:
    """Send one message; why it was not taken, None if it was."""
    import apprise

    kinds = {
        Severity.INFO: apprise.NotifyType.INFO,
        Severity.WARNING: apprise.NotifyType.WARNING,
        Severity.CRITICAL: apprise.NotifyType.FAILURE,
    }
    kind = apprise.NotifyType.SUCCESS if alert.kind == "recovery" else kinds[alert.finding.severity]
    # From plain text apprise makes HTML with everything escaped; from Markdown, HTML with whatever tags are in it.
    is_markdown = plugin.notify_format is apprise.NotifyFormat.MARKDOWN
    sender = apprise.Apprise([plugin], asset=plugin.asset)
    body = markdown(alert) if is_markdown else text(alert)
    body_format = apprise.NotifyFormat.MARKDOWN if is_markdown else apprise.NotifyFormat.TEXT
    with _Withholding() as withheld:
        try:
            taken = sender.notify(body=body, title=title(alert), notify_type=kind, body_format=body_format)
        except Exception as error:  # noqa: BLE001 - one target's defect keeps no other from its message
            return f"apprise failed with {type(error).__name__}"
    return None if taken else _refusal(withheld)


def _refusal(said: Sequence[str]) -> str:
    """Why a message was not taken, from what apprise said about it; its sentences themselves may hold secrets."""
    codes = {code.value: code.phrase for code in http.HTTPStatus}
    for line in reversed(said):
        answer = re.search(r"\berror=(\d{3})\b", line)
        if answer and not answer[1].startswith("2"):
            return f"it answered {answer[1]} {codes.get(int(answer[1]), '')}".rstrip()
    if any("connection error" in line.lower() for line in said):
        return "it cannot be reached, or did not answer in time"
    return "it did not take the message"


def _mark(url: str) -> str:
    """Letters by which one URL is known from another."""
    return hashlib.pbkdf2_hmac("sha256", url.encode(), b"perennial alert target", MARK_ROUNDS, MARK_BYTES).hex()


def _mistake(url: str, position: int) -> str:
    import apprise

    where, see = f"alert target {position}", "https://appriseit.com/services has how they are written"
    schema = _schema(url)
    if not schema:
        return f"{where} has no schema such as slack:// or mailtos://; {see}"
    known = {one for plugin in apprise.Apprise().details()["schemas"] for one in _details_schemas(plugin)}
    if schema in ("http", "https"):
        own = "json://" if schema == "http" else "jsons://"
        return (
            f"{where} begins with {schema}://, and no service that apprise knows hands out such a URL; a webhook of your "
            f"own is {own}HOST/PATH; {see}"
        )
    if schema not in known:
        return f"{where} begins with {schema}://, which apprise does not know; {see}"
    return f"{where}, {schema}://, lacks a part or has one too many, or a sign that must be percent-encoded; {see}"


def _details_schemas(plugin: Mapping[str, Any]) -> list[str]:
    return [*(plugin["protocols"] or ()), *(plugin["secure_protocols"] or ())]


def _schemas(plugin: Any) -> list[str]:
    """The schemas of a plugin, the secure ones first."""
    found: list[str] = []
    for some in (plugin.secure_protocol, plugin.protocol):
        found += [some] if isinstance(some, str) else list(some or ())
    return found


def _schema(url: str) -> str:
    found = _SCHEMA.match(url)
    return found[1].lower() if found else ""


class _Withheld(logging.Filter):
    """Keeps log lines of threads that talk to a target from every handler."""

    def __init__(self) -> None:
        super().__init__()
        self.said = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        lines: list[str] | None = getattr(self.said, "lines", None)
        if lines is None:
            return True
        lines.append(record.getMessage())
        return False


_WITHHELD = _Withheld()


class _Withholding:
    """While this thread is in here, what apprise and the HTTP client log goes to the list and nowhere else."""

    def __enter__(self) -> list[str]:
        # A filter sees what is logged on its own logger alone, and a module's logger is there once it is imported.
        for name in list(logging.root.manager.loggerDict):
            if name.split(".")[0] in TALKATIVE:
                logging.getLogger(name).addFilter(_WITHHELD)
        lines: list[str] = []
        _WITHHELD.said.lines = lines
        return lines

    def __exit__(self, *_: object) -> None:
        _WITHHELD.said.lines = None
