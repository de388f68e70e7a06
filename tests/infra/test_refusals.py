"""A value that cannot work is refused before anything is made, in a sentence that has the value and what to write instead."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from terraform import INFRA, Terraform

pytestmark = pytest.mark.infra

RUN = re.compile(r'^run "(\w+)" \{\n.*?^\}\n', re.MULTILINE | re.DOTALL)
VALUES = re.compile(r"^  variables \{\n(.*?)^  \}\n", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"^  expect_failures = \[var\.(\w+)\]\n", re.MULTILINE)
# By run of refused.tftest.hcl: pieces of what is said, the value first, then the mend.
SAID = {
    "name_with_capitals": ("Perennial_Dev", "lower-case"),
    "name_too_long": ("perennial-of-the-whole-company", "3 to 20"),
    "name_ending_in_a_hyphen": ("perennial-", "such as perennial-dev"),
    "region_that_is_a_zone": ("us-east-1a", "write one such as us-east-1"),
    "region_in_china": ("cn-north-1", "take another region"),
    "size_nobody_knows": ("huge", "small or production"),
    "no_zones": ("0 entries", "name three different zones, or leave it out"),
    "the_same_zone_thrice": ("3 entries", "three different zones"),
    "zones_of_another_region": ("eu-west-1a", "name zones of us-east-1, such as us-east-1a"),
    "a_local_zone": ("us-east-1-bos-1a", "no local ones, or leave it out"),
    "range_that_is_none": ("10.42.0.0", "such as 10.42.0.0/16"),
    "range_not_at_its_first_address": ("10.42.0.9/16", "its first address"),
    "range_too_small": ("10.42.0.0/24", "/16 to /20"),
    "range_of_the_internet": ("8.8.0.0/16", "10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"),
    "range_ipv6": ("fd00::/16", "10.0.0.0/8"),
    "api_open_to_all": ("0.0.0.0/0", "name your own addresses"),
    "api_address_without_length": ("198.51.100.7", "such as 198.51.100.7/32"),
    "api_range_not_at_its_first_address": ("198.51.100.7/28", "such as 198.51.100.0/28"),
    "api_private_range": ("10.0.0.0/16", "name public addresses"),
    "no_administrator": ("empty", "aws sts get-caller-identity"),
    "administrator_is_a_session": ("assumed-role/ops/ada", "write the role"),
    "administrator_is_everybody": ("role/*", "such as arn:aws:iam::123456789012:role/ops"),
    "nobody_to_alert": ("0 entries", "name one to ten people"),
    "mail_address_that_is_none": ("ops at example.com", "such as ops@example.com"),
    "budget_of_nothing": ("is 0", "at least 1"),
    "no_gpu_nodes_at_all": ("is 0", "from 1 to 50"),
    "half_a_gpu_node": ("1.5", "whole number"),
    "no_pipeline": ("[]", "name at least one"),
    "pipeline_with_a_hyphen": ("my-model", "underscores"),
    "old_kubernetes": ("1.33", "1.34 or newer"),
    "tag_of_aws": ("aws:owner", "choose others"),
}
# The same of runs of plans.tftest.hcl: regions that lack something, of which only AWS knows.
SAID_OF_REGIONS = {
    "a_region_with_one_gpu_type_is_refused": ('us-east-1 offers ["g4dn.xlarge"]', "Take another region, such as"),
    "a_region_with_two_zones_is_refused": ("us-east-1 offers this account 2 zones", "Choose a region with three"),
}


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


@pytest.fixture(scope="module")
def said(initialized: Terraform) -> dict[str, str]:
    """What is said of each run's value when nobody expects it to be refused.

    A file ends with a plan that is refused, so each gets its own.
    """
    text = (INFRA / "tests" / "refused.tftest.hcl").read_text()
    preamble = text[: text.index("\nrun ")]
    runs = {found[1]: (_wrong(found[0]), VALUES.search(found[0])[1]) for found in RUN.finditer(text)}  # type: ignore[index]
    folder = initialized.folder / "refused"
    folder.mkdir()
    plans = (INFRA / "tests" / "plans.tftest.hcl").read_text()
    preamble_of_plans = plans[: plans.index("\nrun ")]
    for found in RUN.finditer(plans):
        if found[1] in SAID_OF_REGIONS:
            unexpected = re.sub(r"^  expect_failures = .*\n", "", found[0], flags=re.MULTILINE)
            (folder / f"{found[1]}.tftest.hcl").write_text(f"{preamble_of_plans}\n{unexpected}")
    made = groups(runs)
    for number, group in enumerate(made):
        values = "".join(runs[run][1] for run in group.values())
        run = f'run "together" {{\n  command = plan\n  variables {{\n{values}  }}\n}}\n'
        (folder / f"{number}.tftest.hcl").write_text(f"{preamble}\n{run}")
    result = initialized.run("test", "-json", "-test-directory=refused")
    shutil.rmtree(folder)
    assert result.status == 1
    sentences: dict[str, str] = {}
    for line in result.output.splitlines():
        told = json.loads(line)
        if told["type"] == "diagnostic":
            summary, detail = told["diagnostic"]["summary"], told["diagnostic"]["detail"]
            run = Path(told["@testfile"]).name.split(".")[0]
            assert summary == (
                "Resource precondition failed" if run in SAID_OF_REGIONS else "Invalid value for variable"
            )
            if run not in SAID_OF_REGIONS:
                run = made[int(run)][detail.split()[0]]  # a sentence begins with the variable's name
            sentences[run] = f"{sentences.get(run, '')} {detail}"
    return sentences


def _wrong(run: str) -> str:
    found = EXPECTED.search(run)
    assert found is not None, run
    return found[1]


@pytest.mark.parametrize("run", [*SAID, *SAID_OF_REGIONS])
def test_a_refusal_says_the_value_and_the_mend(said: dict[str, str], run: str) -> None:
    for piece in (SAID | SAID_OF_REGIONS)[run]:
        assert piece in said[run], said[run]


def test_every_variable_that_can_be_wrong_has_a_refusal() -> None:
    variables = (INFRA / "variables.tf").read_text().split('\nvariable "')
    validated = {
        block.split('"')[1 if block.startswith("variable") else 0] for block in variables if "validation {" in block
    }
    text = (INFRA / "tests" / "refused.tftest.hcl").read_text()
    runs = {found[1]: _wrong(found[0]) for found in RUN.finditer(text)}
    assert set(runs) == set(SAID)
    assert set(runs.values()) == validated
