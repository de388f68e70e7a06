"""Outputs of infra/terraform as settings: of perennial for a shell, and of the cluster's pods for infra/kubernetes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from perennial.errors import StateError, UsageError
from perennial.terraform import parsed

COMMAND = "terraform output -json"
NEEDED: Mapping[str, type] = {
    "region": str,
    "cluster_name": str,
    "image_repositories": dict,
    "kafka_bootstrap_servers": str,
    "kafka_options": dict,
    "lake_warehouse": str,
    "lake_catalog_uri": str,
    "checkpoints": str,
    "mlflow_artifact_root": str,
    "database_host": str,
    "database_port": int,
    "database_name": str,
    "database_secret_arn": str,
    "online_store_host": str,
    "online_store_port": int,
    "online_store_secret_arn": str,
    "alert_urls_secret_arn": str,
    "alert_topic_arn": str,
    "disk_key_arn": str,
}


def read_outputs(text: str, source: str) -> dict[str, Any]:
    """The outputs of infra/terraform that settings are made of.

    Args:
        text: what `terraform output -json` said.
        source: where it comes from, for messages.

    Returns:
        Values by name.

    Raises:
        UsageError: it is something else.
        StateError: nothing, or not everything, has been applied.
    """
    told = parsed(text, source, COMMAND)
    if "format_version" in told:
        raise UsageError(f"{source} is a plan or a state; write the outputs with `{COMMAND}`")
    if not told:
        raise StateError(f"{source} has no outputs: nothing has been applied there; run `terraform apply` first")
    if not all(isinstance(output, dict) and "value" in output for output in told.values()):
        raise UsageError(f"{source} is not what `{COMMAND}` writes; write it with that, without a name behind it")
    values = {name: output["value"] for name, output in told.items()}
    if not NEEDED.keys() & values.keys():
        names = ", ".join(sorted(values)[:3])
        raise UsageError(f"{source} has the outputs of something else ({names}); take those of infra/terraform")
    if missing := [name for name in NEEDED if values.get(name) in (None, "", {})]:
        raise StateError(
            f"{source} has no {', '.join(missing)}: an apply did not come to its end, or is older than this perennial; "
            "run `terraform apply`, then again"
        )
    for name, kind in NEEDED.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise UsageError(
                f"{source}: {name} is {values[name]!r}, not as infra/terraform writes it; take its outputs"
            )
    if missing := [name for name in ("worker", "service") if not values["image_repositories"].get(name)]:
        raise UsageError(
            f"{source}: image_repositories has no {', '.join(missing)}; take the outputs of infra/terraform"
        )
    return {name: values[name] for name in NEEDED}


def settings_of(outputs: Mapping[str, Any]) -> dict[str, str]:
    """perennial's settings, by environment variable. Passwords are not among them: what uses them asks Secrets Manager."""
    where = f"{outputs['database_host']}:{outputs['database_port']}/{outputs['database_name']}"
    return {
        **_shared(outputs),
        "PERENNIAL_DATABASE_URL": f"postgresql+psycopg://{where}?sslmode=require",
        "PERENNIAL_DATABASE_SECRET_ARN": outputs["database_secret_arn"],
        "PERENNIAL_ONLINE_STORE_URL": f"rediss://{outputs['online_store_host']}:{outputs['online_store_port']}/0",
        "PERENNIAL_ONLINE_STORE_SECRET_ARN": outputs["online_store_secret_arn"],
    }


def cluster_addresses(outputs: Mapping[str, Any]) -> dict[str, str]:
    """What infra/kubernetes reads from addresses.env. There, one job gives every pod the passwords that it needs."""
    return {
        **_shared(outputs),
        "CLUSTER_NAME": outputs["cluster_name"],
        "WORKER_REPOSITORY": outputs["image_repositories"]["worker"],
        "SERVICE_REPOSITORY": outputs["image_repositories"]["service"],
        "MLFLOW_ARTIFACT_ROOT": outputs["mlflow_artifact_root"],
        "DATABASE_HOST": outputs["database_host"],
        "DATABASE_PORT": str(outputs["database_port"]),
        "DATABASE_NAME": outputs["database_name"],
        "DATABASE_SECRET_ARN": outputs["database_secret_arn"],
        "ONLINE_STORE_SECRET_ARN": outputs["online_store_secret_arn"],
        "ALERT_URLS_SECRET_ARN": outputs["alert_urls_secret_arn"],
        "ALERT_TOPIC_ARN": outputs["alert_topic_arn"],
        "DISK_KEY_ARN": outputs["disk_key_arn"],
    }


def _shared(outputs: Mapping[str, Any]) -> dict[str, str]:
    return {
        "AWS_REGION": outputs["region"],
        "AWS_DEFAULT_REGION": outputs["region"],  # the one that botocore, and with it Kafka's IAM, looks at
        "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": outputs["kafka_bootstrap_servers"],
        # Without blanks, so that a shell can read an env file, too.
        "PERENNIAL_KAFKA_OPTIONS": json.dumps(outputs["kafka_options"], separators=(",", ":")),
        "PERENNIAL_LAKE_WAREHOUSE": outputs["lake_warehouse"],
        "PERENNIAL_LAKE_CATALOG_URI": outputs["lake_catalog_uri"],
        "PERENNIAL_CHECKPOINTS": outputs["checkpoints"],
    }


def for_a_shell(values: Mapping[str, str]) -> str:
    """Lines for `eval` or `source`, of any POSIX shell."""
    return "".join(f"export {name}={_quoted(value)}\n" for name, value in values.items())


def for_an_env_file(values: Mapping[str, str]) -> str:
    """Lines NAME=VALUE as Docker and kustomize read them: without quotes, one line a value.

    Raises:
        UsageError: a value has more than one line.
    """
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            raise UsageError(
                f"{name} has more than one line, which no env file can hold; mend the output it comes from"
            )
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _quoted(value: str) -> str:
    within = value.replace("'", "'\\''")
    return f"'{within}'"
