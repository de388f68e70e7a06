from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.verdict import Status, Verdict, worst

verdicts = st.lists(st.builds(Verdict, st.sampled_from(Status), st.text(max_size=5)), min_size=1, max_size=6)


def test_absence_of_data_is_worse_than_a_pass_and_better_than_an_error():
    assert Status.PASS < Status.INCONCLUSIVE < Status.ERROR < Status.FAIL


def test_nothing_checked_is_inconclusive():
    assert worst([]).status is Status.INCONCLUSIVE


@given(verdicts)
def test_the_worst_is_as_bad_as_its_worst_member_whatever_the_order(found):
    assert worst(found).status == max(v.status for v in found) == worst(reversed(found)).status


def test_the_worst_keeps_only_the_reasons_that_decided_and_all_measurements():
    found = worst(
        [
            Verdict(Status.FAIL, "a failed", {"a": 1.0}),
            Verdict(Status.PASS, "b is fine", {"b": 2.0}),
            Verdict(Status.FAIL, "c failed", {"a": 3.0}),
        ]
    )
    assert found.reason == "a failed; c failed"
    assert found.measurements == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize("status", Status)
def test_only_a_pass_passes(status):
    assert Verdict(status, "").passed == (status is Status.PASS)


def test_json_has_null_for_what_json_cannot_say():
    told = Verdict(Status.INCONCLUSIVE, "few rows", {"auc": math.nan, "psi": math.inf, "rows": 3.0}).as_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "status": "INCONCLUSIVE",
        "reason": "few rows",
        "measurements": {"auc": None, "psi": None, "rows": 3.0},
    }


def test_measurements_cannot_be_changed_afterwards_not_even_through_the_dict_given():
    given_ = {"rows": 1.0}
    verdict = Verdict(Status.PASS, "fine", given_)
    given_["rows"] = 2.0
    assert verdict.measurements["rows"] == 1.0
    with pytest.raises(TypeError):
        verdict.measurements["rows"] = 3.0
