"""What is kept: the ledger, the lake, the online store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from features.catalog import answering, catalog_of, has_namespace, is_made, remote, shown, try_files
from perennial.doctor.findings import Finding, failed, passed, to_be_taken_back, unclear
from perennial.doctor.machine import writable
from perennial.errors import UnreachableError
from perennial.settings import Settings
from rollout.ledger import Ledger

CLOCKS_APART_S, CLOCKS_FAR_APART_S = 2.0, 10.0
MADE = "nothing: it is made when it is needed first"


def ledger(settings: Settings) -> Finding:
    """Whether the ledger's database answers, has what it should, takes entries, and has the same time."""
    if not settings.database_url and not (settings.root / "ledger.db").exists():
        return unclear("no ledger yet, SQLite below PERENNIAL_HOME", MADE)
    opened = Ledger(settings.ledger_url, settings.database_secret_arn)
    begin = datetime.now(UTC)
    try:
        found = opened.examine()
    finally:
        opened.close()
    told = f"{found.dialect} {found.version} at {found.address}"
    if not found.may_make_tables and (found.missing or not found.has_tables):
        mend = "let it: ALTER DATABASE ... OWNER TO this user, or GRANT CREATE ON SCHEMA public"
        return failed(f"{told} has no ledger, and this user may not make its tables", mend)
    if not found.has_tables:
        return unclear(f"{told} has no ledger yet", MADE)
    if found.missing:
        some = ", ".join(found.missing[:3])
        return unclear(f"{told} lacks {some}, of an older perennial", "nothing: the next flow adds them")
    if found.now is None:
        return passed(f"{told} takes entries")
    # It was read between the two: at most the time in between is not known.
    end = datetime.now(UTC)
    apart_s = max((begin - found.now).total_seconds(), (found.now - end).total_seconds(), 0.0)
    if apart_s > CLOCKS_APART_S:
        say = failed if apart_s > CLOCKS_FAR_APART_S else unclear
        reason = f"{told}: its clock and this computer's are {apart_s:.0f} s apart"
        return say(reason, "set the clocks (NTP): a canary's lease is a time of day", clock_s=apart_s)
    return passed(f"{told} takes entries; clocks agree", clock_s=apart_s)


def lake_catalog(settings: Settings, pipeline: str | None) -> Finding:
    """Whether the lake's catalog answers, and knows the pipeline."""
    uri = settings.catalog_uri
    if not is_made(settings):
        return unclear(f"no lake yet, {shown(uri)}", f"fill it: perennial ingest {pipeline or 'PIPELINE'}")
    if uri.startswith("glue:") and pipeline:
        return _glue_database(settings, pipeline)
    catalog = catalog_of(settings)
    try:
        with answering(uri, settings.warehouse):
            namespaces = sorted(".".join(name) for name in catalog.list_namespaces())
    except UnreachableError as error:
        if not _denied(error):
            raise
        # So it is for a worker of infra/terraform, which needs none of the others.
        return unclear("AWS Glue answers, and does not let this role list its databases", "name a pipeline")
    kind = "AWS Glue" if uri.startswith("glue:") else "SQL catalog"
    known = f"{kind} with {', '.join(namespaces[:4]) or 'no database'}"
    if pipeline is None or pipeline in namespaces:
        return passed(known, databases=len(namespaces))
    return unclear(f"{known}: nothing of {pipeline} yet", f"fill it: perennial ingest {pipeline}")


def _glue_database(settings: Settings, pipeline: str) -> Finding:
    """Of the pipeline's database only: its role may look at no other."""
    mend = f"add {pipeline!r} to `pipelines` of infra/terraform and apply; its role may use that database only"
    try:
        there = has_namespace(settings, pipeline)
    except UnreachableError as error:
        if not _denied(error):
            raise
        return failed(f"AWS Glue does not let this role look at the database {pipeline}", mend)
    if not there:
        return failed(f"AWS Glue has no database {pipeline}", mend)
    return passed(f"AWS Glue has the database {pipeline}")


def _denied(error: UnreachableError) -> bool:
    return "AccessDenied" in str(error.__cause__)


def lake_files(settings: Settings) -> Finding:
    """Whether the lake's files can be written, read and deleted."""
    if not remote(settings.warehouse):
        folder = Path(unquote(urlsplit(settings.warehouse).path))
        if why := writable(folder):
            return failed(why, "choose another PERENNIAL_LAKE_WAREHOUSE, or mend its permissions")
        return passed(f"{folder} can be written to")
    try:
        with to_be_taken_back():
            try_files(settings, f"perennial-doctor-{uuid4()}")
    except UnreachableError as error:
        return failed(f"{settings.warehouse}: {refusal(str(error.__cause__))}", mend_of_s3(str(error.__cause__)))
    return passed(f"{settings.warehouse} is written, read and deleted")


def refusal(told: str) -> str:
    """The words of S3 that matter, of a long sentence around them."""
    return told.rpartition("AWS Error ")[2].strip(". ") or told


def mend_of_s3(
    told: str, otherwise: str = "see PERENNIAL_LAKE_WAREHOUSE, PERENNIAL_LAKE_OPTIONS and the network"
) -> str:
    """What to do about a refusal of S3.

    Args:
        told: its words.
        otherwise: the mend where they say nothing in particular.
    """
    lower = told.lower()
    if "kms" in lower:
        return "let this role use the bucket's KMS key: kms:Decrypt and kms:GenerateDataKey"
    if "no_such_bucket" in lower or "does not exist" in lower or "nosuchbucket" in lower:
        return "there is no such bucket: mend its name, or run `terraform apply`"
    if "access_denied" in lower or "accessdenied" in lower or "forbidden" in lower:
        return "let this role put, get and delete objects there"
    if "credentials" in lower:
        return "give AWS credentials: `aws sso login`, AWS_PROFILE, or the pod's service account"
    return otherwise


def online_store(settings: Settings) -> Finding:
    """Whether the online store answers, takes rows, and by TLS."""
    if not settings.online_store_url:
        return passed("SQLite below PERENNIAL_HOME")
    from pydantic import SecretStr

    from features.redis_client import ask_redis
    from features.redis_client import shown as shown_redis

    url = settings.online_store_url
    version, role = ask_redis(SecretStr(url), settings.online_store_secret_arn)
    told = f"Redis {version} at {shown_redis(url)}"
    if role != "master":
        return failed(f"{told} is a replica and takes no rows", "set PERENNIAL_ONLINE_STORE_URL to the primary")
    parts = urlsplit(url)
    if parts.scheme != "rediss" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        return unclear(f"{told} without TLS: its password and features can be read on the way", "use rediss://")
    return passed(f"{told}{', TLS' if parts.scheme == 'rediss' else ''}")
