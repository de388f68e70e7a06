"""How findings of `perennial doctor` are looked at."""

from __future__ import annotations

from perennial.doctor.findings import Finding
from validation.verdict import Status

PASS, INCONCLUSIVE, ERROR, FAIL = Status.PASS, Status.INCONCLUSIVE, Status.ERROR, Status.FAIL


def status(finding: Finding) -> Status:
    assert finding.verdict.status is PASS or finding.mend or finding.verdict.status is FAIL
    return finding.verdict.status


def said(finding: Finding) -> str:
    return f"{finding.verdict.reason} -> {finding.mend}"


def status_of(found: dict[str, Finding], name: str) -> Status:
    return found[name].verdict.status
