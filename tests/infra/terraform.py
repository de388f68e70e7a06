"""Runs Terraform as a user would, but in a copy of infra/terraform, with dummy keys, and with addresses of this computer only."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

INFRA = Path(__file__).parents[2] / "infra" / "terraform"
PROVIDER = Path("registry.terraform.io/hashicorp/aws")
# Read before the fixture that takes PERENNIAL_* out of the environment of tests.
NAMED_MIRROR = os.environ.get("PERENNIAL_TERRAFORM_PLUGIN_MIRROR")
# Where Terraform itself looks (its documentation calls them implied mirrors), and below where add-on software lies.
USUAL_PLACES = (
    "~/.terraform.d/plugins",
    "~/.local/share/terraform/plugins",
    "~/Library/Application Support/io.terraform/plugins",
    "/Library/Application Support/io.terraform/plugins",
    "/usr/local/share/terraform/plugins",
    "/usr/share/terraform/plugins",
)
ADD_ONS = Path("/opt")


def plugin_mirror(
    named: str | None = NAMED_MIRROR, places: tuple[str, ...] = USUAL_PLACES, add_ons: Path = ADD_ONS
) -> Path | None:
    """A folder of this computer that holds the AWS provider, or None: then it comes from the registry."""
    if named:
        if not (Path(named) / PROVIDER).is_dir():
            raise FileNotFoundError(f"PERENNIAL_TERRAFORM_PLUGIN_MIRROR is {named}, which has no {PROVIDER}")
        return Path(named)
    candidates = [Path(place).expanduser() for place in places]
    candidates += sorted(add_ons.iterdir()) if add_ons.is_dir() else []
    return next((candidate for candidate in candidates if (candidate / PROVIDER).is_dir()), None)


def refuse_foreign(endpoints: Mapping[str, str]) -> None:
    """Stop unless every address is this computer's.

    Raises:
        ValueError: one is not; Terraform must not be started.
    """
    for name, address in endpoints.items():
        host = urlparse(address).hostname or ""
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False  # a name: whoever answers for it could answer anything
        if not loopback:
            raise ValueError(f"{name} is {address}, which is not this computer; tests apply to 127.0.0.1 only")


def clean_environment(home: Path, endpoints: Mapping[str, str]) -> dict[str, str]:
    """What Terraform gets to know: no keys, files or settings of whoever runs the tests."""
    refuse_foreign(endpoints)
    nowhere = str(home / "none")
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": tempfile.gettempdir(),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
        # Without emulators nothing must be reached at all.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "CHECKPOINT_DISABLE": "1",
        # Terraform and its provider collect their garbage less often: a third less time, for half a gigabyte more.
        "GOGC": "400",
        "TF_IN_AUTOMATION": "1",
        "TF_INPUT": "0",
        **endpoints,
    }


@dataclass(frozen=True)
class Result:
    """What a command of Terraform came to."""

    status: int
    output: str


class Terraform:
    """A copy of infra/terraform with a state of its own.

    Args:
        folder: where to put the copy.
        endpoints: AWS_ENDPOINT_URL and the like; none for what needs no AWS.
        like: another copy, whose provider serves this one, too; without it, `init` must come first.
    """

    def __init__(self, folder: Path, endpoints: Mapping[str, str] | None = None, like: Terraform | None = None) -> None:
        self.folder = folder / "terraform"
        shutil.copytree(
            INFRA, self.folder, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*", "terraform.tfvars")
        )
        home = folder / "home"
        home.mkdir()
        self.environment = clean_environment(home, endpoints or {})
        mirror = plugin_mirror()
        if mirror is not None:
            (home / "cli.tfrc").write_text(
                f"provider_installation {{\n  filesystem_mirror {{\n    path = {json.dumps(str(mirror))}\n  }}\n}}\n"
            )
            self.environment["TF_CLI_CONFIG_FILE"] = str(home / "cli.tfrc")
        else:
            cache = folder.parent / "terraform-plugins"
            cache.mkdir(exist_ok=True)
            self.environment["TF_PLUGIN_CACHE_DIR"] = str(cache)
        if like is not None:
            shutil.copytree(like.folder / ".terraform", self.folder / ".terraform", symlinks=True)

    def run(self, *arguments: str, timeout_s: float = 420, environment: Mapping[str, str] | None = None) -> Result:
        """Run a command to its end, with more in its environment or other things.

        It is interrupted where it takes too long: ended by SIGTERM in mid-apply, Terraform leaves an empty state behind.
        """
        process = subprocess.Popen(
            ["terraform", *arguments],
            cwd=self.folder,
            env=self._environment(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        return Result(process.returncode, output)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        refuse_foreign({name: address for name, address in more.items() if name.startswith("AWS_ENDPOINT_URL")})
        return {**self.environment, **more}

    def must(self, *arguments: str, timeout_s: float = 420) -> str:
        """Run a command that has to succeed; returns what it said."""
        result = self.run(*arguments, timeout_s=timeout_s)
        assert result.status == 0, (
            f"terraform {' '.join(arguments)} ended with {result.status}:\n{_told(result.output)}"
        )
        return result.output

    def init(self) -> Result:
        """Fetch the provider that the lock file names, and no other."""
        return self.run("init", "-no-color", "-lockfile=readonly")

    def outputs(self) -> dict[str, Any]:
        """Values of the outputs by name."""
        return {name: told["value"] for name, told in json.loads(self.must("output", "-json")).items()}

    def resources(self) -> list[str]:
        """Addresses of what is in the state, without what is only read."""
        return [line for line in self.must("state", "list").split() if not line.startswith("data.")]


def _told(output: str) -> str:
    """From the first error on; else the end."""
    at = output.find("Error:")
    return output[at : at + 4000] if at >= 0 else output[-4000:]
