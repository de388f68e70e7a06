"""What can be told of infra/terraform without applying it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from terraform import INFRA, PROVIDER, Result, Terraform, clean_environment, plugin_mirror, refuse_foreign

pytestmark = pytest.mark.infra


def test_files_are_in_terraforms_own_format(initialized: Terraform) -> None:
    result = initialized.run("fmt", "-check", "-recursive", "-diff")
    assert result.status == 0, result.output


def test_the_configuration_is_valid(validity: Result) -> None:
    assert validity.status == 0, validity.output
    assert "The configuration is valid." in validity.output


def test_what_would_be_made_is_planned_right(plans: Result) -> None:
    told = [json.loads(line) for line in plans.output.splitlines()]
    summary = next(line["test_summary"] for line in told if line["type"] == "test_summary")
    wrong = [line["diagnostic"] for line in told if line["type"] == "diagnostic"]
    assert (summary["status"], summary["failed"], summary["errored"], summary["skipped"]) == ("pass", 0, 0, 0), wrong
    assert summary["passed"] == (INFRA / "tests" / "plans.tftest.hcl").read_text().count('\nrun "')


def test_a_node_group_that_does_not_go_to_zero_fails_terraforms_tests(careless_plans: Result) -> None:
    assert careless_plans.status == 1
    assert "a GPU group does not go down to zero" in careless_plans.output


def test_checkov_finds_nothing_that_is_not_answered(judgement: dict[str, Any]) -> None:
    found = {
        kind: [one for one in checks if one["file_path"].startswith("/as_is/")]
        for kind, checks in judgement["results"].items()
        if kind != "parsing_errors"
    }
    assert [(one["check_id"], one["resource"]) for one in found["failed_checks"]] == []
    assert judgement["results"]["parsing_errors"] == []
    assert len(found["passed_checks"]) > 200
    reasons = {one["check_result"]["suppress_comment"] for one in found["skipped_checks"]}
    assert all(len(reason.split()) >= 5 for reason in reasons), reasons


def test_checkov_finds_a_bucket_made_public(judgement: dict[str, Any]) -> None:
    failed = judgement["results"]["failed_checks"]
    found = {one["check_id"] for one in failed if one["file_path"].startswith("/careless/")}
    assert "CKV_AWS_54" in found  # "Ensure S3 bucket has block public policy enabled"


def test_the_only_provider_is_the_aws_provider_and_its_lock_serves_every_platform() -> None:
    used = set(
        re.findall(r'^(?:resource|data) "([a-z]+)_', "\n".join(f.read_text() for f in INFRA.glob("*.tf")), re.MULTILINE)
    )
    assert used == {"aws", "terraform"}
    assert not [file for file in INFRA.glob("*.tf") if re.search(r'^module "', file.read_text(), re.MULTILINE)]
    lock = (INFRA / ".terraform.lock.hcl").read_text()
    assert re.findall(r'^provider "(.+)"', lock, re.MULTILINE) == [str(PROVIDER)]
    # The registry's signed list of archives, one for each platform: the provider's release has archives for 14, and its manifest.
    assert len(set(re.findall(r'"zh:[0-9a-f]{64}"', lock))) == 15


def test_the_configuration_knows_nothing_of_emulators() -> None:
    text = "\n".join(file.read_text() for file in INFRA.rglob("*.tf"))
    assert not re.search(r"localhost|127\.0\.0\.1|skip_credentials|s3_use_path_style|\bendpoints\b|access_key", text)


def test_every_output_and_variable_is_described_and_in_the_readme() -> None:
    text = "\n".join(file.read_text() for file in INFRA.glob("*.tf"))
    blocks = re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL)
    readme = (INFRA / "README.md").read_text()
    assert len(blocks) > 30
    for kind, name, body in blocks:
        assert re.search(r'^  description = "[A-Za-z].*\."$', body, re.MULTILINE), (
            f"{kind} {name} is not described in a sentence"
        )
        assert f"| `{name}` |" in readme, f"{kind} {name} is not in infra/terraform/README.md"


@pytest.mark.parametrize(
    "address",
    [
        "https://s3.amazonaws.com",
        "http://10.0.0.5:5000",
        "http://localhost.example.com:5000",
        "http://0.0.0.0:5000",
        "",
        "http://localhost:5000",
    ],
)
def test_an_address_that_is_not_surely_this_computer_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="not this computer"):
        clean_environment(tmp_path, {"AWS_ENDPOINT_URL": "http://127.0.0.1:5000", "AWS_ENDPOINT_URL_EKS": address})


def test_loopback_addresses_are_taken() -> None:
    refuse_foreign({"AWS_ENDPOINT_URL": "http://127.0.0.1:5000", "AWS_ENDPOINT_URL_S3": "http://[::1]:5000"})


def test_terraform_learns_nothing_of_the_keys_of_whoever_runs_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_ROLE_ARN",
        "AWS_ACCESS_KEY_ID",
        "TF_VAR_region",
        "AWS_ENDPOINT_URL_IAM",
    ):
        monkeypatch.setenv(name, "of-a-real-account")
    known = clean_environment(tmp_path, {})
    assert "of-a-real-account" not in known.values()
    assert known["HOME"] == str(tmp_path)
    # Without emulators there is nobody at the address: port 1 is nobody's.
    assert known["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"


def test_a_plugin_mirror_is_found_where_it_is_named_or_in_a_usual_place(tmp_path: Path) -> None:
    named, usual, add_ons = tmp_path / "named", tmp_path / "usual", tmp_path / "opt"
    for folder in (named, usual, add_ons / "plugins"):
        (folder / PROVIDER).mkdir(parents=True)
    (add_ons / "another").mkdir()
    assert plugin_mirror(str(named), (str(usual),), add_ons) == named
    assert plugin_mirror(None, (str(tmp_path / "none"), str(usual)), add_ons) == usual
    assert plugin_mirror(None, (), add_ons) == add_ons / "plugins"
    assert plugin_mirror(None, (), tmp_path / "none") is None
    with pytest.raises(FileNotFoundError, match="PERENNIAL_TERRAFORM_PLUGIN_MIRROR"):
        plugin_mirror(str(tmp_path / "none"), (), add_ons)
