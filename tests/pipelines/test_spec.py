from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perennial.errors import UsageError
from perennial.template.pipeline import PIPELINE
from pipelines.spec import (
    DriftPolicy,
    EventSpec,
    Expectation,
    Feature,
    PerformancePolicy,
    PipelineSpec,
    ScoredSpec,
    add_pipelines_dir,
    load_pipeline,
    pipeline_names,
)


def with_(**changes: Any) -> PipelineSpec:
    """The template's pipeline with other parts, checked anew."""
    parts = {name: getattr(PIPELINE, name) for name in PipelineSpec.model_fields}
    return PipelineSpec(**{**parts, **changes})


def test_the_pipelines_there_are_have_names() -> None:
    assert "flights" in set(pipeline_names())
    assert load_pipeline("flights").name == "flights"


@pytest.mark.parametrize("name", ["nowhere", "spec", "../flights", "", "flights.pipeline", "FLIGHTS"])
def test_an_unknown_pipeline_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown pipeline .*there is: .*flights.*perennial init NAME"):
        load_pipeline(name)


def test_a_folder_without_a_pipeline_is_told(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "__init__.py").write_text("")
    (tmp_path / "hollow" / "pipeline.py").write_text("PIPELINE = 7\n")
    add_pipelines_dir(tmp_path)
    with pytest.raises(UsageError, match=r"hollow/pipeline\.py holds no PIPELINE .*found int"):
        load_pipeline("hollow")


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        (
            "typo",
            'from pipelines.spec import Aggregate\n\nA = Aggregate(name="a", field="x", function="median", window_s=60)\n',
            r"^pipelines/typo/pipeline\.py:3: function: Input should be .*; correct it$",
        ),
        ("unclosed", "PIPELINE = (\n", r"unclosed/pipeline\.py:1: '\(' was never closed; correct it$"),
    ],
)
def test_a_mistake_in_a_pipelines_code_is_told_with_its_line(name: str, code: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "pipeline.py").write_text(code)
    add_pipelines_dir(tmp_path)
    with pytest.raises(UsageError, match=told):
        load_pipeline(name)


@pytest.mark.parametrize("name", ["kafka_offset", "created_timestamp", "extra"])
def test_a_field_cannot_have_the_name_of_a_column_that_is_added(name: str) -> None:
    event = PIPELINE.events[0].model_dump()
    with pytest.raises(ValidationError, match=rf"fields \['{name}'\] are columns that perennial adds"):
        EventSpec(**{**event, "fields": [*event["fields"], {"name": name, "type": "string"}]})


def test_a_pipeline_cannot_be_changed_and_takes_no_unknown_part() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PIPELINE.name = "other"
    with pytest.raises(ValidationError, match="colour"):
        with_(colour="red")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scored": ScoredSpec(topic="shop.nothing.v1", key="order_id")}, "'shop.nothing.v1' is not among its events"),
        ({"scored": ScoredSpec(topic=PIPELINE.scored.topic, key="colour")}, "has no field"),
        ({"label": PIPELINE.label.model_copy(update={"key": "colour"})}, "has no field"),
        ({"views": (PIPELINE.views[0].model_copy(update={"key": "colour"}),)}, "has no field"),
        ({"views": (PIPELINE.views[0].model_copy(update={"entity": "colour"}),)}, "has no field"),
        ({"features": (Feature(name="price_eur", kind="numeric"),) * 2}, "named twice"),
        *(
            ({"features": (Feature(name=name, kind="numeric"),)}, rf"\['{name}'\] have names of columns")
            for name in ("contract", "label", "model_version", "score")
        ),
        (
            {"performance": PerformancePolicy(slices=("product", "colour"))},
            r"slices \['colour'\] are not among its features",
        ),
        ({"name": "My Shop"}, "pattern"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        with_(**changes)


def test_an_event_knows_its_table_and_its_own_fields() -> None:
    event = PIPELINE.event(PIPELINE.scored.topic)
    assert event.table == "pipeline_name_order_placed_v1"
    with pytest.raises(ValidationError, match="'colour' is not among its fields"):
        EventSpec(
            topic=event.topic,
            fields=event.fields,
            event_timestamp="event_timestamp",
            event_id=("colour",),
            partition_key="order_id",
        )
    with pytest.raises(KeyError):
        PIPELINE.event("shop.nothing.v1")


@pytest.mark.parametrize("window_s", [3_600, 6 * 3_600, 12 * 3_600, 86_400, 7 * 86_400])
def test_windows_of_whole_days_or_of_hours_that_divide_one_are_taken(window_s: int) -> None:
    assert DriftPolicy(window_s=window_s, persistence=3).watched_s == 3 * window_s


@pytest.mark.parametrize("window_s", [1, 5_400, 5 * 3_600, 36 * 3_600, 86_401])
def test_other_windows_of_drift_are_refused(window_s: int) -> None:
    with pytest.raises(ValidationError, match=f"drift.window_s is {window_s}; make it a number of whole days"):
        DriftPolicy(window_s=window_s)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"warn_at": 0.3}, "drift.warn_at is 0.3, above drift.drift_at, 0.25; make it smaller"),
        ({"share_drift_at": 0.01}, "drift.share_warn_at is 0.02, above drift.share_drift_at, 0.01; make it smaller"),
    ],
)
def test_a_warning_that_comes_after_drift_is_refused(limits: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DriftPolicy(**limits)
    assert DriftPolicy(warn_at=0.25, share_warn_at=0.1).drift_at == 0.25


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"kind": "between"}, "x: between has neither a minimum nor a maximum; give it one"),
        (
            {"kind": "between", "minimum": 9, "maximum": 0.5},
            "x: minimum 9 is above maximum 0.5, so no value is valid; swap or mend them",
        ),
        ({"kind": "between", "maximum": math.nan}, "x: maximum is nan, which no value reaches; make it a number"),
        ({"kind": "in_set"}, "x: in_set has no values; name those that are valid"),
        ({"kind": "matches"}, "x: matches has no pattern; give it a regular expression"),
        ({"kind": "matches", "pattern": "("}, "the pattern '(' is no regular expression (missing ), "),
        # It compiles by itself, but not as a part, and only as a part can it be asked of the whole value.
        ({"kind": "matches", "pattern": "a(?i)b"}, "the pattern 'a(?i)b' is no regular expression ("),
        (
            {"kind": "not_null", "mostly": -0.5},
            "x: mostly is -0.5; make it a share above 0 and at most 1, such as 0.99",
        ),
        ({"kind": "not_null", "mostly": 99}, "x: mostly is 99; make it a share above 0"),
        ({"kind": "not_null", "mostly": math.nan}, "x: mostly is nan; make it a share above 0"),
    ],
)
def test_a_line_of_the_contract_that_nothing_can_meet_is_refused_when_it_is_read(
    line: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        Expectation(column="x", **line)


def test_bounds_that_meet_in_one_value_are_taken() -> None:
    assert Expectation(column="x", kind="between", minimum=7, maximum=7).minimum == 7


def test_a_contract_that_nothing_can_meet_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    folder = tmp_path / "upside_down"
    folder.mkdir()
    (folder / "__init__.py").touch()
    line = 'Expectation(column="price", kind="between", minimum=9, maximum=0)'
    (folder / "contract.py").write_text(f"from pipelines.spec import Expectation\n\nCONTRACT = ({line},)\n")
    (folder / "pipeline.py").write_text("from .contract import CONTRACT\n")
    add_pipelines_dir(tmp_path)
    told = r"^pipelines/upside_down/contract\.py:3: price: minimum 9 is above maximum 0, .*; correct it$"
    with pytest.raises(UsageError, match=told):
        load_pipeline("upside_down")
