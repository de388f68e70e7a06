"""The event stream: Kafka, its topics, the schema registry."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence

from features.broker import TopicsFound, try_topics
from perennial.doctor.findings import Finding, failed, passed, unclear
from perennial.errors import UnreachableError
from perennial.settings import Settings
from perennial.web_addresses import without_user
from perennial.wording import counted

CONNECT_S = 1.0
BOOTSTRAP_MS = 2_500
NO_STACK = "no stack runs here"
BEGIN_STACK = "start one with `perennial up`, or set {}"
# Kafka's word for why a topic cannot be read, and what to do.
MENDS = {
    "UnknownTopicOrPartitionError": "is not there",
    "TopicAuthorizationFailedError": "may not be read by this user",
    "LeaderNotAvailableError": "has no leader",
}


def kafka(settings: Settings) -> Finding:
    """Whether a broker answers, in the way in which the settings speak to it."""
    if told := _no_answer(settings):
        return told
    found = _asked(settings, ())
    if isinstance(found, Finding):
        return found
    way = settings.kafka_options.get("security_protocol", "PLAINTEXT")
    return passed(f"answers at {settings.kafka_bootstrap_servers}, {way}")


def topics(settings: Settings, names: Sequence[str]) -> Finding:
    """Whether each topic is there, and lets itself be read."""
    if told := _no_answer(settings):
        return told
    found = _asked(settings, names)
    if isinstance(found, Finding):
        return found
    if found.refused:
        lines = [f"{topic} {MENDS.get(why, why)}" for topic, why in sorted(found.refused.items())]
        denied = "TopicAuthorizationFailedError" in found.refused.values()
        made = (
            "give this user READ and DESCRIBE on them"
            if denied
            else "send events, or make them with the partitions you want"
        )
        return failed("; ".join(lines), made, readable=len(found.partitions), refused=len(found.refused))
    counts = sum(found.partitions.values())
    told_all = f"{counted(len(found.partitions), 'topic')} with {counted(counts, 'partition')} can be read"
    return passed(told_all, topics=len(found.partitions), partitions=counts)


def schema_registry(url: str) -> Finding:
    """Whether a schema registry answers as one."""
    import httpx

    from perennial.web_addresses import user_of

    address = without_user(url).rstrip("/")
    mend = "see PERENNIAL_SCHEMA_REGISTRY_URL"
    try:
        answer = httpx.get(f"{address}/subjects", auth=user_of(url), timeout=3, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return failed(f"no schema registry answers at {address} ({type(error).__name__})", mend)
    if answer.status_code in (401, 403):
        return failed(f"{address} refuses this user ({answer.status_code})", f"{mend}: https://USER:PASSWORD@HOST")
    try:
        subjects = answer.json() if answer.is_success else None
    except ValueError:
        subjects = None
    if not isinstance(subjects, list):
        return failed(f"{address} answered {answer.status_code}, not as a schema registry does", mend)
    return passed(f"{counted(len(subjects), 'subject')} at {address}", subjects=len(subjects))


def _no_answer(settings: Settings) -> Finding | None:
    """What is wrong where nobody listens at any of the addresses."""
    reasons = {address: _refused(address) for address in settings.kafka_bootstrap_servers.split(",")}
    if not all(reasons.values()):
        return None
    if "kafka_bootstrap_servers" not in settings.model_fields_set:
        return unclear(NO_STACK, BEGIN_STACK.format("PERENNIAL_KAFKA_BOOTSTRAP_SERVERS"))
    return failed(_listed(reasons), "start it, let this computer reach it, or mend PERENNIAL_KAFKA_BOOTSTRAP_SERVERS")


def _asked(settings: Settings, names: Sequence[str]) -> TopicsFound | Finding:
    """What a broker tells; or why none does, where something listens."""
    try:
        return try_topics(settings, names, BOOTSTRAP_MS)
    except UnreachableError:
        return _not_understood(settings)


def _listed(reasons: Mapping[str, str | None]) -> str:
    return "; ".join(f"{address}: {why}" for address, why in reasons.items() if why)


def _refused(address: str) -> str | None:
    """Why no connection to host:port comes about; None if one does."""
    host, _, port = address.strip().rpartition(":")
    if not host or not port.isdigit():
        return "is not host:port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except socket.gaierror:
        return "no such host"
    except TimeoutError:
        return f"no answer within {CONNECT_S:g} s"
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or "cannot be reached"
    return None


def _not_understood(settings: Settings) -> Finding:
    """Somebody listens, but no Kafka answers as the settings ask."""
    address = next(a.strip() for a in settings.kafka_bootstrap_servers.split(",") if not _refused(a))
    asks_tls = "SSL" in str(settings.kafka_options.get("security_protocol", "PLAINTEXT"))
    has_tls = speaks_tls(address)
    if has_tls and not asks_tls:
        mend = 'set PERENNIAL_KAFKA_OPTIONS to {"security_protocol": "SSL"}, or "SASL_SSL" with how to sign in'
        return failed(f"{address} speaks TLS, and the settings do not", mend)
    if asks_tls and not has_tls:
        mend = "take the port for TLS, or security_protocol out of PERENNIAL_KAFKA_OPTIONS"
        return failed(f"{address} does not speak TLS, and the settings do", mend)
    return failed(
        f"somebody listens at {address}, but does not answer as Kafka",
        "see whether the port is Kafka's, and its certificate and PERENNIAL_KAFKA_OPTIONS fit",
    )


def speaks_tls(address: str) -> bool:
    """Whether whoever listens at host:port begins a TLS handshake; whose certificate it is is not looked at."""
    host, _, port = address.rpartition(":")
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as plain:
            anybody.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it speaks TLS and wants something else of it, such as our certificate
    except OSError:
        return False
    return True
