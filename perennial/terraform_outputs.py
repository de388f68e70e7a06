"""What `terraform apply` of infra/terraform made, as the settings that point perennial at it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perennial.errors import UnreachableError, UsageError

FOLDER = Path("infra/terraform")
# The setting, and the output that it is made of; a second name is a key of that output.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "AWS_REGION": ("region",),
    "AWS_DEFAULT_REGION": ("region",),
    "CLUSTER_NAME": ("cluster_name",),
    "WORKER_REPOSITORY": ("image_repositories", "worker"),
    "SERVICE_REPOSITORY": ("image_repositories", "service"),
    "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": ("kafka_bootstrap_servers",),
    "PERENNIAL_KAFKA_OPTIONS": ("kafka_options",),
    "PERENNIAL_LAKE_WAREHOUSE": ("lake_warehouse",),
    "PERENNIAL_LAKE_CATALOG_URI": ("lake_catalog_uri",),
    "PERENNIAL_CHECKPOINTS": ("checkpoints",),
    "MLFLOW_ARTIFACT_ROOT": ("mlflow_artifact_root",),
    "DATABASE_HOST": ("database_host",),
    "DATABASE_PORT": ("database_port",),
    "DATABASE_NAME": ("database_name",),
    "DATABASE_SECRET_ARN": ("database_secret_arn",),
    "ONLINE_STORE_SECRET_ARN": ("online_store_secret_arn",),
    "ALERT_URLS_SECRET_ARN": ("alert_urls_secret_arn",),
}


def settings_of(outputs: str, source: str) -> dict[str, str]:
    """Settings by name, in the order of `SETTINGS`.

    Args:
        outputs: what `terraform output -json` printed.
        source: where that was read, for what is said of it.

    Raises:
        UsageError: it is no such thing, nothing was applied, or an output is missing or empty.
    """
    try:
        told = json.loads(outputs)
    except ValueError as error:
        raise UsageError(
            f"{source} is not JSON ({error}); give what `terraform output -json` prints, with -json"
        ) from error
    if not isinstance(told, dict) or not all(isinstance(one, dict) and "value" in one for one in told.values()):
        raise UsageError(
            f"{source} is JSON, but not what `terraform output -json` prints: outputs by name with a value"
        )
    if not told:
        raise UsageError(
            f"{source} holds no outputs: nothing is applied there, or a destroy was begun; run `terraform apply` first"
        )
    return {name: _text(told, path, source) for name, path in SETTINGS.items()}


def read_outputs(folder: Path) -> str:
    """Ask Terraform for the outputs of what it applied in a folder.

    Raises:
        UsageError: there is no such folder, or Terraform cannot read its state.
        UnreachableError: Terraform is not installed.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder} here; call it in the root of the repository, or pipe the outputs in: "
            "`terraform output -json | perennial infra outputs -`"
        )
    try:
        done = subprocess.run(
            ["terraform", f"-chdir={folder}", "output", "-json", "-no-color"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnreachableError(
            "terraform is not on the PATH; install it, or save `terraform output -json` where it is and give the file"
        ) from error
    if done.returncode:
        raise UsageError(f"Terraform cannot tell the outputs of {folder}: {' '.join(done.stderr.split())[:500]}")
    return done.stdout


def _text(told: Mapping[str, Any], path: tuple[str, ...], source: str) -> str:
    value: Any = told.get(path[0], {}).get("value")
    for key in path[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    if value in (None, "", {}, []):
        name = ".".join(path)
        raise UsageError(
            f"{source} has no output {name!r}; it is of another project, of an older infra/terraform, or of an apply that did "
            "not end: run `terraform apply` of this version to its end"
        )
    # Without blanks, so that a shell can read the file, too.
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
