"""Who answers where: the addresses of the stack, which of them the user gave, and how child processes are told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from perennial.ports import HOST, StackPorts
from perennial.settings import STACK_FILE, Settings

FIELDS: Mapping[str, str] = {
    "kafka": "kafka_bootstrap_servers",
    "prefect": "prefect_api_url",
    "mlflow": "mlflow_tracking_uri",
    "scoring": "scoring_url",
}
# The block of the local stack's Prefect server that says where results of flow runs would go.
RESULTS_BLOCK = "perennial-results"
QUIET: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",
}


def variable(field: str) -> str:
    """The environment variable of a field of Settings."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"PERENNIAL_{field.upper()}"


def given_addresses(settings: Settings) -> dict[str, str]:
    """Addresses that the user gave, by field of Settings: those parts of the stack are not started.

    An address that only comes from the file of a stack that is gone does not count.
    """
    try:
        stale = json.loads((settings.root / STACK_FILE).read_text()).get("addresses", {})
    except (OSError, ValueError):
        stale = {}
    return {
        field: value
        for field in FIELDS.values()
        if field in settings.model_fields_set
        and ((value := getattr(settings, field)) != stale.get(field) or variable(field) in os.environ)
    }


def local_addresses(ports: StackPorts) -> dict[str, str]:
    """The address of every service of a local stack on these ports, by field of Settings."""
    return {
        "kafka_bootstrap_servers": f"{HOST}:{ports.kafka}",
        "prefect_api_url": f"http://{HOST}:{ports.prefect}/api",
        "mlflow_tracking_uri": f"http://{HOST}:{ports.mlflow}",
        "scoring_url": f"http://{HOST}:{ports.scoring}",
    }


def child_environment(settings: Settings, addresses: Mapping[str, str], *, own_prefect: bool) -> dict[str, str]:
    """The environment in which every child, and every flow that the worker starts, finds the whole stack."""
    told = settings.model_dump(mode="json", include=settings.model_fields_set - {"home", "pipelines_dir", "alert_urls"})
    if "alert_urls" in settings.model_fields_set:
        told["alert_urls"] = settings.alert_urls.get_secret_value()  # a dump has asterisks in its place
    if settings.pipelines_dir is not None:
        told["pipelines_dir"] = str(settings.pipelines_dir.expanduser().resolve())
    told |= {"home": str(settings.root), **addresses}
    environment = {**os.environ, **QUIET}
    environment |= {variable(field): v if isinstance(v, str) else json.dumps(v) for field, v in told.items()}
    if own_prefect:
        environment |= {
            "PREFECT_HOME": str(settings.root / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": f"local-file-system/{RESULTS_BLOCK}",
            # Slots taken are in the database, their leases by default in memory: a killed server would forget who gives
            # a slot back, and a deployment's only one would stay taken for ever. On disk a lease runs out (300 s).
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
    return environment
