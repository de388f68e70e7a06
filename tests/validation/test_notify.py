"""Messages over real HTTP on the loopback, and what is never said about where they go."""

from __future__ import annotations

import logging
import re
import threading
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from webhook import Webhook, listening
from webhook import webhook as webhook  # a fixture

from perennial.errors import UsageError
from perennial.settings import Settings
from validation import notify
from validation.alerts import Alert, Finding, Kind, Moved, Severity
from validation.notify import Delivery, open_target, open_targets, send, split_urls

AT = datetime(2026, 5, 1, tzinfo=UTC)
ALERT = Alert(
    "shop", "alert", Finding("drift", Severity.CRITICAL, "1 of 2 columns drifted", (Moved("a_b", "PSI 0.4"),)), "", AT
)
# Each with everything in it that is secret.
SECRETS = {
    "slack://TokenA123/TokenB1234/SecretSecretSecretSecret1/#ops": ("slack://", ["TokenA123", "TokenB1234", "Secret"]),
    "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ": (
        "slack://",
        ["T1JJ3T3L2", "A1BRTD4JD", "TIiajkdn"],
    ),
    "mailtos://kim:pa55w0rd@mail.example.com?to=me@x.com": (
        "mailtos://mail.example.com:587",
        ["pa55w0rd", "kim", "me@x"],
    ),
    "json://kim:pa55w0rd@127.0.0.1:1/p4th?+Authorization=Bearer%20t0ken&-key=qu3ry": (
        "json://127.0.0.1:1",
        ["pa55w0rd", "kim", "p4th", "t0ken", "qu3ry"],
    ),
    "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js": ("discord://", ["4174216298", "JHMHI8"]),
    "sns://AKIAACCESSKEY123456/SECRETkeySECRETkeySECRETkeySECRETkey1234/us-east-1/topic": (
        "sns://",
        ["AKIAACC", "SECRETkey"],
    ),
    "tgram://123456789:abcdefg_hijklmnop/12315544/": ("tgram://", ["123456789", "hijklmnop", "12315544"]),
}


def opened(*urls: str) -> tuple[notify.Target, ...]:
    targets, mistakes = open_targets([SecretStr(url) for url in urls])
    assert mistakes == ()
    return targets


def name(url: str) -> str:
    """A target's name when there is no other."""
    return opened(url)[0].name


def sent(*urls: str, alerts: Sequence[Alert] = (ALERT,)) -> tuple[Delivery, ...]:
    return send(dict.fromkeys(opened(*urls), alerts))


def test_a_webhook_gets_the_title_and_the_text(webhook: Webhook) -> None:
    (delivery,) = sent(webhook.url)
    assert delivery == Delivery(name(webhook.url), ALERT, None)
    (got,) = webhook.received
    assert webhook.paths == ["/hook"]
    assert (got["title"], got["type"]) == ("CRITICAL shop: drift", "failure")
    assert got["message"].splitlines()[:4] == ["1 of 2 columns drifted", "", "What moved:", "- a_b: PSI 0.4"]


def test_html_has_what_is_from_outside_escaped(webhook: Webhook) -> None:
    hostile = Alert("shop", "alert", Finding("drift", Severity.INFO, "<script>alert(1)</script>"), "", AT)
    sent(f"{webhook.url}?format=html", alerts=[hostile])
    assert "<script" not in webhook.received[0]["message"]
    assert "&lt;script" in webhook.received[0]["message"]


def test_slack_gets_markdown_whose_names_are_code_and_call_nobody(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{webhook.port}/services")
    webhook.words = b"ok"  # what Slack says
    calls = Finding("drift", Severity.INFO, "moved", (Moved("<!channel>", "<@U123|kim> <https://evil.example|here>"),))
    (delivery,) = sent(
        "slack://TokenA123/TokenB1234/SecretSecretSecretSecret1/", alerts=[Alert("shop", "alert", calls, "", AT)]
    )
    assert delivery.refusal is None
    (attachment,) = webhook.received[0]["attachments"]
    assert attachment["title"] == "INFO shop: drift"
    line = next(line for line in attachment["text"].splitlines() if "channel" in line)
    assert line.startswith("- `&lt;")
    assert line.endswith("`")
    # Slack acts on what is between < and >; as entities they are only shown.
    assert not {"<", ">"} & set(line)


@pytest.mark.parametrize(
    ("kind", "severity", "shown"),
    [
        ("alert", Severity.INFO, "info"),
        ("reminder", Severity.WARNING, "warning"),
        ("alert", Severity.CRITICAL, "failure"),
        ("recovery", Severity.CRITICAL, "success"),
    ],
)
def test_the_severity_colours_the_message(webhook: Webhook, kind: Kind, severity: Severity, shown: str) -> None:
    sent(webhook.url, alerts=[Alert("shop", kind, Finding("data", severity, "so it is"), "", AT)])
    assert webhook.received[0]["type"] == shown


def test_one_dead_target_keeps_no_other_from_its_messages(webhook: Webhook, free_port: int) -> None:
    second = Alert("shop", "alert", Finding("data", Severity.CRITICAL, "bad"), "", AT)
    dead, alive = f"json://127.0.0.1:{free_port}/", webhook.url
    found = sent(dead, alive, alerts=[ALERT, second])
    refusal = "it cannot be reached, or did not answer in time"
    assert [(d.target, d.refusal) for d in found] == [
        (name(dead), refusal),
        (name(dead), refusal),
        (name(alive), None),
        (name(alive), None),
    ]
    assert webhook.titles == ["CRITICAL shop: drift", "CRITICAL shop: data"]


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (401, "it answered 401 Unauthorized"),
        (500, "it answered 500 Internal Server Error"),
        (302, "it answered 302 Found"),
        (599, "it answered 599"),
    ],
)
def test_another_answer_than_yes_is_a_refusal(webhook: Webhook, answer: int, refusal: str) -> None:
    webhook.answer = answer
    url = f"{webhook.url}?optional=yes"
    assert sent(url) == (Delivery(name(url), ALERT, refusal),)
    assert webhook.paths == ["/hook"]


def test_a_yes_that_the_service_does_not_say_is_a_refusal(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{webhook.port}/services")
    webhook.words = b"<html>a proxy's page</html>"
    (delivery,) = sent("slack://TokenA123/TokenB1234/SecretSecretSecretSecret1/")
    assert delivery.refusal == "it did not take the message"


def test_a_target_that_never_answers_is_left_alone_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "DEADLINE_S", 0.5)
    with listening() as silent, listening() as other:
        silent.may_answer.clear()
        stuck, fine = sent(f"{silent.url}?rto=60", other.url)
        assert stuck.refusal == "it did not answer within 0.5 s"
        assert fine.refusal is None
        assert [t.daemon for t in threading.enumerate() if "(work)" in t.name] == [True]


@pytest.mark.parametrize(("url", "name"), [(url, name) for url, (name, _) in SECRETS.items()])
def test_a_target_is_named_by_its_schema_and_by_a_host_that_is_one(url: str, name: str) -> None:
    (target,) = opened(url)
    assert re.fullmatch(rf"{re.escape(name)} #[0-9a-f]{{4}}", target.name)
    for secret in SECRETS[url][1]:
        assert secret not in repr(target)


def test_a_target_keeps_its_name_whoever_comes_before_it_and_goes() -> None:
    chats = [url for url, (name, _) in SECRETS.items() if name == "slack://"]
    mails = [f"mailtos://kim:pa55w0rd@mail.example.com?to={to}@x.com" for to in ("ann", "bob")]
    for one, other in (chats, mails):
        both = [t.name for t in opened(one, other)]
        assert len(set(both)) == 2
        assert [t.name for t in opened(other, one)] == both[::-1]
        assert [t.name for alone in (one, other) for t in opened(alone)] == both


def test_the_letters_of_a_name_are_a_slow_digest_of_the_whole_url() -> None:
    # From OpenSSL's command: a name that changes between versions would forget what its target was told.
    assert name("json://127.0.0.1:8080/hook") == "json://127.0.0.1:8080 #31a6"


def test_a_url_that_is_there_twice_is_two_targets(webhook: Webhook) -> None:
    first, second = sent(webhook.url, webhook.url)
    assert first.target == name(webhook.url)
    assert second.target == f"{first.target} 2"
    assert webhook.titles == ["CRITICAL shop: drift"] * 2


def test_no_log_line_and_no_result_holds_a_secret(
    webhook: Webhook, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], free_port: int
) -> None:
    caplog.set_level(1)
    for name in ("apprise", "urllib3.connectionpool", "urllib3", "requests"):
        logging.getLogger(name).setLevel(1)
    secrets = "kim:pa55w0rd@127.0.0.1:{}/p4th?+Authorization=Bearer%20t0ken&-key=qu3ry"
    taken = sent(f"json://{secrets.format(webhook.port)}")
    webhook.answer = 403
    refused = sent(f"json://{secrets.format(webhook.port)}", f"json://{secrets.format(free_port)}")
    _, mistakes = open_targets([SecretStr(f"slak://{secrets.format(1)}"), SecretStr("slack://pa55w0rd")])
    assert webhook.paths == ["/p4th?key=qu3ry"] * 2
    assert [d.refusal is None for d in (*taken, *refused)] == [True, False, False]
    assert len(mistakes) == 2
    said = caplog.text + "".join(capfd.readouterr()) + repr((taken, refused, mistakes))
    for secret in ("pa55w0rd", "p4th", "t0ken", "qu3ry"):
        assert secret not in said


def test_other_threads_log_as_ever_while_a_message_is_sent(caplog: pytest.LogCaptureFixture, webhook: Webhook) -> None:
    caplog.set_level(1)
    webhook.may_answer.clear()
    sending = threading.Thread(target=sent, args=(webhook.url,))
    sending.start()
    while not webhook.paths:
        assert sending.is_alive()
    logging.getLogger("urllib3.connectionpool").warning("of another's request")
    webhook.may_answer.set()
    sending.join(20)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("urllib3")] == ["of another's request"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("slak://pa55w0rd/x", "alert target 3 begins with slak://, which apprise does not know"),
        ("pa55w0rd", "alert target 3 has no schema such as slack://"),
        ("://pa55w0rd", "alert target 3 has no schema such as slack://"),
        ("slack://pa55w0rd", "alert target 3, slack://, lacks a part"),
        ("https://pa55w0rd.example", "alert target 3 begins with https://, and no service"),
        ("json://[pa55w0rd", "alert target 3, json://, lacks a part"),
        ("json://", "alert target 3, json://, lacks a part"),
    ],
)
def test_a_url_that_is_no_target_is_told_by_its_position_and_schema(url: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_target(SecretStr(url), 3)
    assert str(caught.value).startswith(said)
    assert "https://appriseit.com/services" in str(caught.value)
    assert "pa55w0rd" not in "".join(traceback.format_exception(caught.value)).replace(f'"{url}"', "")


def test_a_mistake_in_one_url_leaves_the_others(webhook: Webhook) -> None:
    targets, mistakes = open_targets([SecretStr("nonsense"), SecretStr(webhook.url)])
    assert [t.name for t in targets] == [name(webhook.url)]
    assert len(mistakes) == 1


@pytest.mark.parametrize(
    ("told", "urls"),
    [
        ("", []),
        (" \n ", []),
        ("json://a", ["json://a"]),
        ("json://a slack://b\n\tsns://c", ["json://a", "slack://b", "sns://c"]),
        ("json://a, slack://b,sns://c,", ["json://a", "slack://b", "sns://c"]),
        ("mailto://h?to=a@x,b@y json://b", ["mailto://h?to=a@x,b@y", "json://b"]),
    ],
)
def test_urls_are_parted_by_blanks_and_keep_their_commas(told: str, urls: list[str]) -> None:
    assert [url.get_secret_value() for url in split_urls(told)] == urls


def test_settings_do_not_show_the_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URLS", "json://kim:pa55w0rd@example.com")
    found = Settings()
    assert found.alert_urls.get_secret_value() == "json://kim:pa55w0rd@example.com"
    assert "pa55w0rd" not in repr(found) + str(found) + found.model_dump_json()
