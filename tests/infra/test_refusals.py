"""A value that cannot work is refused before anything is made, in a sentence that has the value and what to write instead."""

from __future__ import annotations

import pytest
from questions import RUN, wrong
from terraform import INFRA

pytestmark = pytest.mark.infra

# By run of refused.tftest.hcl: pieces of what is said, the value first, then the mend.
SAID = {
    "name_with_capitals": ("Perennial_Dev", "lower-case"),
    "name_too_long": ("perennial-of-the-whole-company", "3 to 20"),
    "name_ending_in_a_hyphen": ("perennial-", "such as perennial-dev"),
    "region_that_is_a_zone": ("us-east-1a", "write one such as us-east-1"),
    "region_in_china": ("cn-north-1", "take another region"),
    "region_of_a_government": ("us-gov-west-1", "take another region"),
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
    "administrator_of_identity_center_without_a_path": ("role/AWSReservedSSO_Admin", "aws iam get-role"),
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
    "a_region_without_two_gpu_types_in_one_zone_is_refused": (
        'us-east-1 offers ["g4dn.xlarge","g5.xlarge"]',
        "Take another region, such as",
    ),
    "a_region_without_the_system_nodes_in_a_zone_is_refused": (
        'us-east-1 does not offer ["t3.xlarge"] in each of the zones ["us-east-1a","us-east-1b"]',
        "Take another region, other zones (availability_zones), or other types (sizes.tf)",
    ),
    "a_region_with_two_zones_is_refused": ("us-east-1 offers this account 2 zones", "Choose a region with three"),
}


@pytest.mark.parametrize("run", [*SAID, *SAID_OF_REGIONS])
def test_a_refusal_says_the_value_and_the_mend(refusals: dict[str, str], run: str) -> None:
    for piece in (SAID | SAID_OF_REGIONS)[run]:
        assert piece in refusals[run], refusals[run]


def test_every_variable_that_can_be_wrong_has_a_refusal() -> None:
    variables = (INFRA / "variables.tf").read_text().split('\nvariable "')
    validated = {
        block.split('"')[1 if block.startswith("variable") else 0] for block in variables if "validation {" in block
    }
    text = (INFRA / "tests" / "refused.tftest.hcl").read_text()
    runs = {found[1]: wrong(found[0]) for found in RUN.finditer(text)}
    assert set(runs) == set(SAID)
    assert set(runs.values()) == validated
