"""What the quick tests ask of Terraform and checkov: each a program that runs for seconds, and none waits for another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from emulators import TOOLS
from terraform import INFRA, Result, Terraform

PLANS = "-filter=tests/plans.tftest.hcl"
CHECKOV = TOOLS / "checkov" / "bin" / "checkov"
RUN = re.compile(r'^run "(\w+)" \{\n.*?^\}\n', re.MULTILINE | re.DOTALL)
VALUES = re.compile(r"^  variables \{\n(.*?)^  \}\n", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"^  expect_failures = \[var\.(\w+)\]\n", re.MULTILINE)
EXPECTED_OF_AWS = re.compile(r"^  expect_failures = \[aws_.*\n", re.MULTILINE)


def validity(initialized: Terraform, folder: Path) -> Result:
    return initialized.run("validate", "-no-color")


def plans(initialized: Terraform, folder: Path) -> Result:
    """`terraform test` of plans.tftest.hcl, a line of JSON for each thing it says."""
    return initialized.run("test", "-json", PLANS)


def careless_plans(initialized: Terraform, folder: Path) -> Result:
    """The same of its first run, where GPU groups begin with a node."""
    careless = Terraform(folder, like=initialized)
    nodes = careless.folder / "gpu_spot.tf"
    nodes.write_text(re.sub(r"desired_size = 0", "desired_size = 1", nodes.read_text()))
    tests = careless.folder / "tests" / "plans.tftest.hcl"
    preamble, first, _ = tests.read_text().split("\nrun ", 2)
    tests.write_text(f"{preamble}\nrun {first}")
    return careless.run("test", "-no-color", PLANS)


def refusals(initialized: Terraform, folder: Path) -> dict[str, str]:
    """What is said of each value that is refused, by the run that has it, when nobody expects it to be refused.

    A file ends with a plan that is refused, so each gets its own.
    """
    asked = Terraform(folder, like=initialized)
    preamble, runs = _preamble_and_runs("refused")
    values = {name: (wrong(run), VALUES.search(run)[1]) for name, run in runs.items()}  # type: ignore[index]
    made = groups(values)
    shutil.rmtree(asked.folder / "tests")
    (asked.folder / "tests").mkdir()
    for number, group in enumerate(made):
        together = "".join(values[name][1] for name in group.values())
        run = f'run "together" {{\n  command = plan\n  variables {{\n{together}  }}\n}}\n'
        (asked.folder / "tests" / f"{number}.tftest.hcl").write_text(f"{preamble}\n{run}")
    preamble, runs = _preamble_and_runs("plans")
    of_aws = {name: EXPECTED_OF_AWS.sub("", run) for name, run in runs.items() if EXPECTED_OF_AWS.search(run)}
    for name, run in of_aws.items():
        (asked.folder / "tests" / f"{name}.tftest.hcl").write_text(f"{preamble}\n{run}")
    result = asked.run("test", "-json")
    assert result.status == 1, result.output
    sentences: dict[str, str] = {}
    for line in result.output.splitlines():
        told = json.loads(line)
        if told["type"] == "diagnostic":
            summary, detail = told["diagnostic"]["summary"], told["diagnostic"]["detail"]
            name = Path(told["@testfile"]).name.split(".")[0]
            assert summary == ("Resource precondition failed" if name in of_aws else "Invalid value for variable")
            if name not in of_aws:
                name = made[int(name)][detail.split()[0]]  # a sentence begins with the variable's name
            sentences[name] = f"{sentences.get(name, '')} {detail}"
    return sentences


def groups(runs: dict[str, tuple[str, str]]) -> list[dict[str, str]]:
    """Runs that can be refused in one plan: each variable once, and zones not where the region they are of is wrong.

    Args:
        runs: by name, the variable that is wrong and the value's lines.

    Returns:
        Of each group, the name of a run by its variable.
    """
    apart = {"region": "availability_zones", "availability_zones": "region"}
    made: list[dict[str, str]] = []
    for run, (variable, _) in runs.items():
        free = (group for group in made if variable not in group and apart.get(variable) not in group)
        group = next(free, None)
        if group is None:
            made.append(group := {})
        group[variable] = run
    return made


def wrong(run: str) -> str:
    """The variable whose value a run expects to be refused."""
    found = EXPECTED.search(run)
    assert found is not None, run
    return found[1]


def _preamble_and_runs(file: str) -> tuple[str, dict[str, str]]:
    text = (INFRA / "tests" / f"{file}.tftest.hcl").read_text()
    return text[: text.index("\nrun ")], {found[1]: found[0] for found in RUN.finditer(text)}


def judgement(initialized: Terraform, folder: Path) -> dict[str, Any]:
    """What checkov says, by its own rules and without a network, of infra/terraform and of a bucket made public.

    It takes longer to start than to judge, so both are judged at once; a check's file_path begins with as_is or careless.
    """
    shutil.copytree(initialized.folder, folder / "as_is", ignore=shutil.ignore_patterns(".terraform", "tests"))
    (folder / "careless").mkdir()
    storage = (INFRA / "storage.tf").read_text()
    (folder / "careless" / "storage.tf").write_text(
        storage.replace("block_public_policy     = true", "block_public_policy     = false")
    )
    what = ["--directory", str(folder), "--framework", "terraform", "--skip-download", "--output", "json"]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LOG_LEVEL": "ERROR"}
    judged = subprocess.run([str(CHECKOV), *what], capture_output=True, text=True, env=environment, timeout=300)
    told: dict[str, Any] = json.loads(judged.stdout)
    return told
