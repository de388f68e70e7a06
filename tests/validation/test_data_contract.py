from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipelines.spec import Expectation
from validation.contract import FAILED, SLICE_ROWS, Met, describe, fingerprint, too_many, validate
from validation.suite import compile_suite
from validation.verdict import Status

DISTANCE = Expectation(column="distance", kind="between", minimum=0, maximum=6000)
ORIGIN = Expectation(column="origin", kind="in_set", values=("JFK", "LGA", "EWR"))
CARRIER = Expectation(column="carrier", kind="matches", pattern=r"^[A-Z0-9]{2}$")
KEY = Expectation(column="flight_id", kind="unique")
HERE = Expectation(column="distance", kind="not_null")
CONTRACT = (HERE, DISTANCE, ORIGIN, CARRIER, KEY)


def flights(**changed):
    columns = {
        "flight_id": ["f1", "f2", "f3", "f4"],
        "distance": [100.0, 2475.0, 733.0, 6000.0],
        "origin": ["JFK", "LGA", "EWR", "JFK"],
        "carrier": ["AA", "B6", "9E", "UA"],
    }
    return pl.DataFrame(columns | changed, strict=False)


def test_a_batch_that_meets_its_contract_passes_whole():
    found = validate(flights(), CONTRACT, "departures")
    assert found.verdict.status is Status.PASS
    assert found.verdict.reason == "departures: 4 rows met 5 expectations, 0 quarantined"
    assert_frame_equal(found.valid, flights())
    assert found.quarantined.columns == [*flights().columns, FAILED]
    assert found.quarantined.is_empty()


def test_each_kind_of_expectation_quarantines_the_rows_that_fail_it_and_names_itself():
    batch = flights(
        flight_id=["f1", "f1", "f3", "f4"],
        distance=[100.0, 1.0, None, 6000.1],
        origin=["JFK", "LGA", "EWR", "BOS"],
        carrier=["AA", "B6", "9E", "toolong"],
    )
    found = validate(batch, CONTRACT, "departures")
    assert found.valid.is_empty()
    assert found.quarantined[FAILED].to_list() == [
        "flight_id unique",
        "flight_id unique",
        "distance not null",
        "distance between 0 and 6000; origin in {JFK, LGA, EWR}; carrier matches ^[A-Z0-9]{2}$",
    ]
    assert found.verdict.status is Status.FAIL
    assert "distance between 0 and 6000 fails in 1 of 3 rows (66.67% met, 100.00% due)" in found.verdict.reason
    assert found.verdict.measurements == {"rows": 4, "quarantined_rows": 4, "failed_expectations": 5}


def test_rows_that_mostly_tolerates_are_quarantined_and_the_batch_passes():
    tolerant = DISTANCE.model_copy(update={"mostly": 0.75})
    found = validate(flights(distance=[1.0, -5.0, 2.0, 3.0]), (tolerant,), "departures")
    assert found.verdict.status is Status.PASS
    assert found.verdict.reason == "departures: 4 rows met 1 expectations, 1 quarantined"
    assert found.quarantined["flight_id"].to_list() == ["f2"]
    assert found.valid["flight_id"].to_list() == ["f1", "f3", "f4"]


@pytest.mark.parametrize(
    ("bad", "rows", "mostly", "status"),
    [
        # Where one in a hundred is bad, 1 of 50 or more comes with 39 %, 3 with 1.4 %, 4 with 0.2 %.
        (1, 50, 0.99, Status.PASS),
        (3, 50, 0.99, Status.PASS),
        (4, 50, 0.99, Status.FAIL),
        (2, 100, 0.99, Status.PASS),
        (200, 10_000, 0.99, Status.FAIL),
        # One alone is no share: it comes with just 1 %.
        (1, 1, 0.99, Status.PASS),
        (2, 2, 0.99, Status.FAIL),
        (3, 3, 0.99, Status.FAIL),
        (1, 1, 0.991, Status.FAIL),
        # What must always hold has no chance.
        (1, 10_000, 1.0, Status.FAIL),
    ],
)
def test_a_batch_fails_for_more_bad_rows_than_chance_allows(bad, rows, mostly, status):
    batch = pl.DataFrame({"distance": [-1.0] * bad + [1.0] * (rows - bad)})
    found = validate(batch, (DISTANCE.model_copy(update={"mostly": mostly}),), "departures")
    assert found.verdict.status is status
    assert f"distance between 0 and 6000 fails in {bad} of {rows} rows" in found.verdict.reason
    assert ("which may be chance" in found.verdict.reason) is (status is Status.PASS)
    assert ("more than chance allows" in found.verdict.reason) is (status is Status.FAIL and mostly < 1)
    # Whatever becomes of the batch, nobody is scored with a bad row.
    assert (found.quarantined.height, found.valid.height) == (bad, rows - bad)
    assert f"{bad} quarantined" in found.verdict.reason or status is Status.FAIL


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]))
def test_too_many_is_what_the_binomial_distribution_says(checked, failing, mostly):
    failing = min(failing, checked)
    good = Fraction(str(mostly))
    exactly = [math.comb(checked, k) * (1 - good) ** k * good ** (checked - k) for k in range(failing, checked + 1)]
    below = Fraction(checked - failing, checked) < good
    assert too_many(failing, checked, mostly) is (below and sum(exactly) < Fraction(1, 100))


def test_a_missing_column_fails_the_batch_and_says_which():
    found = validate(flights().drop("carrier"), CONTRACT, "departures")
    assert found.verdict.status is Status.FAIL
    assert "column 'carrier' is missing; there is distance, flight_id, origin" in found.verdict.reason
    assert found.valid.is_empty()
    assert set(found.quarantined[FAILED]) == {"carrier matches ^[A-Z0-9]{2}$"}


@pytest.mark.parametrize(
    ("column", "values", "expectation"),
    [
        ("distance", ["far", "near", "far", "1"], DISTANCE),
        ("carrier", [1, 2, 3, 4], CARRIER),
        ("distance", [[1.0]] * 4, DISTANCE),
        ("distance", [datetime(2013, 1, 1, tzinfo=UTC)] * 4, DISTANCE),
        ("origin", [["JFK"]] * 4, ORIGIN),
        ("flight_id", [["f"]] * 4, KEY),
    ],
)
def test_a_column_of_another_type_fails_the_batch_with_the_reason(column, values, expectation):
    batch = flights(**{column: values})
    found = validate(batch, CONTRACT, "departures")
    assert found.verdict.status is Status.FAIL
    assert f"column {column!r} is {batch.schema[column]}, which cannot meet {describe(expectation)}" in (
        found.verdict.reason
    )
    assert found.valid.is_empty()


def test_no_rows_are_inconclusive_and_keep_their_columns():
    found = validate(flights().clear(), CONTRACT, "departures")
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.valid.schema == flights().schema
    assert found.quarantined.schema == flights().schema | {FAILED: pl.String}


def test_a_contract_that_expects_nothing_is_inconclusive():
    assert validate(flights(), (), "departures").verdict.status is Status.INCONCLUSIVE


@pytest.mark.parametrize("values", [[None] * 4, [math.nan] * 4, pl.Series([None] * 4, dtype=pl.Float64)])
def test_a_column_without_a_value_never_passes(values):
    found = validate(flights(distance=values), (DISTANCE, ORIGIN), "departures")
    assert found.verdict.status is Status.INCONCLUSIVE
    assert "distance between 0 and 6000: all 4 rows are missing" in found.verdict.reason
    assert validate(flights(distance=values), CONTRACT, "departures").verdict.status is Status.FAIL


def test_not_a_number_is_missing_and_infinity_is_a_value():
    found = validate(flights(distance=[math.nan, math.inf, -math.inf, 5.0]), (HERE, DISTANCE), "departures")
    assert found.quarantined[FAILED].to_list() == ["distance not null", *["distance between 0 and 6000"] * 2]


def test_one_row_is_judged():
    assert validate(flights().head(1), CONTRACT, "departures").verdict.status is Status.PASS


def test_numbers_and_truth_values_can_be_expected_in_a_set():
    batch = pl.DataFrame({"month": [1, 2, 13, None], "late": [True, False, True, None]})
    months = Expectation(column="month", kind="in_set", values=("1", "2"))
    late = Expectation(column="late", kind="in_set", values=("true",))
    found = validate(batch, (months, late), "months")
    assert found.quarantined["month"].to_list() == [2, 13]


def test_a_pattern_is_met_by_the_whole_value_and_not_by_a_line_break_more():
    for pattern in ("[A-Z]{3}", "^[A-Z]{3}$", "EWR|JFK"):
        line = Expectation(column="origin", kind="matches", pattern=pattern)
        found = validate(pl.DataFrame({"origin": ["EWR", "EWR\n", "JFKX", "XJFK"]}), (line,), "departures")
        assert found.quarantined["origin"].to_list() == ["EWR\n", "JFKX", "XJFK"]


def test_numbers_of_a_set_are_exact_however_large():
    """2**53 + 2 is the float next to 2**53 + 1."""
    ids = pl.DataFrame({"id": [2**53 + 1, 2**53 + 2, 2**53 + 3]})
    line = Expectation(column="id", kind="in_set", values=(str(2**53 + 1), str(2**53 + 3), "none"))
    assert validate(ids, (line,), "ids").quarantined["id"].to_list() == [2**53 + 2]


def test_categorical_columns_are_read_as_text():
    batch = flights().with_columns(pl.col("origin", "carrier").cast(pl.Categorical))
    found = validate(batch, CONTRACT, "departures")
    assert found.verdict.status is Status.PASS
    assert found.valid.schema["origin"] == pl.Categorical


def test_nested_columns_can_be_expected_to_be_there():
    batch = pl.DataFrame({"tags": [["a"], None, []]})
    found = validate(batch, (Expectation(column="tags", kind="not_null"),), "tags")
    assert found.quarantined["tags"].to_list() == [None]


def test_the_same_expectation_twice_counts_once():
    found = validate(flights(distance=[-1.0, 1.0, 2.0, 3.0]), (DISTANCE, DISTANCE), "departures")
    assert found.quarantined[FAILED].to_list() == ["distance between 0 and 6000"]


def test_a_column_called_like_the_reason_is_replaced_by_it():
    batch = flights(**{FAILED: ["old"] * 4}, origin=["JFK", "BOS", "JFK", "JFK"])
    found = validate(batch, (ORIGIN,), "departures")
    assert found.quarantined[FAILED].to_list() == ["origin in {JFK, LGA, EWR}"]


batches = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(-2, 2), st.sampled_from([math.nan, math.inf, 0.0, 1.0])),
        st.sampled_from([None, "", "a", "b", "ab", "a b", "nan"]),
        st.one_of(st.none(), st.integers(0, 12)),
    ),
    min_size=1,
    max_size=25,
).map(
    lambda rows: pl.DataFrame(
        dict(zip("xcn", zip(*rows, strict=True), strict=True)),
        schema={"x": pl.Float64, "c": pl.String, "n": pl.Int64},
        strict=False,
    )
)
share = st.sampled_from([0.25, 0.5, 0.8, 0.9, 1.0])
kinds = st.one_of(
    st.builds(Expectation, column=st.sampled_from("xcn"), kind=st.just("not_null"), mostly=share),
    st.builds(
        Expectation,
        column=st.sampled_from("xn"),
        kind=st.just("between"),
        minimum=st.sampled_from([0, 1]),
        mostly=share,
    ),
    st.builds(
        Expectation, column=st.just("x"), kind=st.just("between"), minimum=st.just(0), maximum=st.just(1), mostly=share
    ),
    st.builds(Expectation, column=st.just("c"), kind=st.just("in_set"), values=st.just(("a", "b")), mostly=share),
    st.builds(Expectation, column=st.just("n"), kind=st.just("in_set"), values=st.just(("1", "2", "x")), mostly=share),
    st.builds(
        Expectation,
        column=st.just("c"),
        kind=st.just("matches"),
        pattern=st.sampled_from(["^a", "^.$", "a|b", "a.*"]),
        mostly=share,
    ),
    st.builds(Expectation, column=st.sampled_from("xcn"), kind=st.just("unique"), mostly=share),
)


def fails(batch, expectation):
    """Which rows fail, and how many have a value, in plain Python."""
    values = [None if isinstance(v, float) and math.isnan(v) else v for v in batch[expectation.column].to_list()]
    if expectation.kind == "not_null":
        return [v is None for v in values], len(values)
    test = {
        "between": lambda v: (expectation.minimum <= v) and (expectation.maximum is None or v <= expectation.maximum),
        "in_set": lambda v: str(v) in expectation.values,
        "matches": lambda v: re.fullmatch(expectation.pattern, v) is not None,
        "unique": lambda v: values.count(v) == 1,
    }[expectation.kind]
    return [v is not None and not test(v) for v in values], sum(v is not None for v in values)


@settings(max_examples=60, deadline=None)
@given(batches, st.lists(kinds, min_size=1, max_size=4))
def test_great_expectations_agrees_with_plain_python(batch, contract):
    found = validate(batch, tuple(contract), "batch")
    failed = [False] * batch.height
    statuses = []
    for expectation in contract:
        rows, checked = fails(batch, expectation)
        failed = [a or b for a, b in zip(failed, rows, strict=True)]
        if not checked:
            statuses.append(Status.INCONCLUSIVE)
        else:
            bad = 1 - Fraction(str(expectation.mostly))
            chance = sum(
                math.comb(checked, k) * bad**k * (1 - bad) ** (checked - k) for k in range(sum(rows), checked + 1)
            )
            statuses.append(Status.FAIL if chance < Fraction(1, 100) else Status.PASS)
    assert found.verdict.status == max(statuses)
    assert_frame_equal(found.quarantined.drop(FAILED), batch.filter(pl.Series(failed)))
    assert_frame_equal(found.valid, batch.filter(~pl.Series(failed)))


def test_every_failing_row_of_a_large_batch_is_found():
    batch = pl.DataFrame({"x": range(30_000)})
    found = validate(batch, (Expectation(column="x", kind="between", minimum=20_000),), "batch")
    assert found.valid["x"].to_list() == list(range(20_000, 30_000))


def test_a_batch_of_several_slices_is_judged_as_one() -> None:
    rows = 2 * SLICE_ROWS + 5
    x = pl.int_range(rows, eager=True).alias("x")
    batch = pl.DataFrame({"x": x}).with_columns(key=pl.when(pl.col("x") == rows - 1).then(3).otherwise("x"))
    contract = (
        Expectation(column="x", kind="between", minimum=7, maximum=2 * SLICE_ROWS),
        Expectation(column="key", kind="unique", mostly=0.5),
    )
    found = validate(batch, contract, "batch")
    # 0 to 6 are too small, the last four too large; 3 is the key of the fourth and of the last.
    assert found.quarantined["x"].to_list() == [*range(7), *range(rows - 4, rows)]
    assert found.quarantined[FAILED][3] == "x between 7 and 200000; key unique"
    assert [j.failed_rows for j in found.judgements] == [11, 2]
    assert f"fails in 11 of {rows} rows" in found.verdict.reason


def test_rows_that_met_the_contract_before_count_and_are_not_judged_again():
    met = Met(4, {"distance": 2}, pl.DataFrame())
    again = flights(distance=[-1.0, 5.0, None, 7.0])
    half = DISTANCE.model_copy(update={"mostly": 0.8})
    found = validate(again, (half, HERE.model_copy(update={"mostly": 0.5})), "window", met=met)
    # Of the 8 rows, 2 and 1 have no distance; of the other 5, one is negative.
    assert found.verdict.status is Status.PASS
    assert [(j.checked_rows, j.missing_rows, j.failed_rows) for j in found.judgements] == [(5, 3, 1), (8, 0, 1)]
    assert found.valid["flight_id"].to_list() == ["f2", "f4"]
    alone = validate(again.clear(), (DISTANCE,), "window", met=met)
    assert (alone.verdict.status, alone.verdict.measurements["rows"]) == (Status.PASS, 4)
    stricter = validate(again, (DISTANCE,), "window", met=met)
    assert "fails in 1 of 5 rows (80.00% met, 100.00% due)" in stricter.verdict.reason


def test_what_must_be_unique_is_looked_at_in_rows_that_met_the_contract_before_too():
    met = Met(5, {"flight_id": 1}, pl.DataFrame({"flight_id": ["f1", "g1", "g1", "g2", None]}))
    found = validate(flights(), (KEY, CARRIER), "window", met=replace(met, missing={"flight_id": 1, "carrier": 0}))
    assert found.quarantined["flight_id"].to_list() == ["f1"]
    (unique, _) = found.judgements
    # Nine rows, one of them without a value; f1 and g1 are there twice.
    assert (unique.checked_rows, unique.missing_rows, unique.failed_rows) == (8, 1, 4)
    assert unique.examples in ((("f1", 2), ("g1", 2)), (("g1", 2), ("f1", 2)))
    assert validate(flights(), (KEY,), "batch").verdict.status is Status.PASS
    nothing_new = validate(flights().clear(), (KEY,), "window", met=met)
    assert "flight_id unique fails in 2 of 4 rows" in nothing_new.verdict.reason


KINDS = {"flight_id": "any", "distance": "numeric", "origin": "categorical", "carrier": "categorical"}


def test_a_new_column_is_told_and_fails_nothing():
    found = validate(flights(gate=["A1"] * 4), CONTRACT, "departures", KINDS)
    assert found.verdict.status is Status.PASS
    assert found.verdict.reason.endswith("new columns that the pipeline does not name: gate (String)")


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (flights().drop("carrier"), "column 'carrier' is missing; there is distance, flight_id, origin"),
        (flights(carrier=[1, 2, 3, 4]), "column 'carrier' is Int64, but the pipeline says categorical"),
        (flights(distance=["1", "2", "3", "4"]), "column 'distance' is String, but the pipeline says numeric"),
        (flights(distance=[[1.0]] * 4), "column 'distance' is List(Float64), but the pipeline says numeric"),
    ],
)
def test_a_column_that_is_not_what_the_pipeline_says_fails_the_batch_though_no_line_names_it(batch, told):
    found = validate(batch, (KEY,), "departures", KINDS)
    assert found.verdict.status is Status.FAIL
    assert found.misfits == (told,)
    assert found.valid.is_empty()
    assert set(found.quarantined[FAILED]) == {told}


def test_a_column_without_a_value_has_no_type_to_be_wrong():
    found = validate(flights(distance=[None] * 4), (KEY,), "departures", KINDS)
    assert found.verdict.status is Status.PASS


def test_the_fingerprint_is_that_of_the_lines_whatever_their_order():
    told = fingerprint(CONTRACT)
    assert re.fullmatch("[0-9a-f]{16}", told)
    assert fingerprint((*reversed(CONTRACT), HERE)) == told
    changed = [
        CONTRACT[1:],
        (*CONTRACT, CARRIER.model_copy(update={"column": "origin"})),
        *(
            (HERE, DISTANCE.model_copy(update=one))
            for one in ({}, {"minimum": 1.0}, {"maximum": None}, {"mostly": 0.9})
        ),
        (HERE, ORIGIN),
        (HERE, ORIGIN.model_copy(update={"values": ("JFK",)})),
    ]
    assert len({told, *(fingerprint(c) for c in changed)}) == len(changed) + 1


def test_the_examples_are_the_values_that_failed_the_most_frequent_first_and_cut():
    long = "x" * 1_000
    found = validate(flights(carrier=["?", long, long, "AA"]), (CARRIER, HERE), "departures")
    assert found.judgements[0].examples == (("x" * 200, 2), ("?", 1))
    assert found.judgements[1].examples == ()


def test_the_suite_says_what_each_column_is():
    suite = compile_suite("flights", CONTRACT, flights().schema, {"distance": "miles"}, "Departures.")
    assert (suite.name, suite.notes, len(suite.expectations)) == ("flights", "Departures.", 5)
    assert [e.notes for e in suite.expectations] == ["miles", "miles", None, None, None]


def test_judging_a_batch_and_its_pages_connects_to_nobody_and_leaves_no_folder(tmp_path):
    code = """
import socket, sys
from datetime import UTC, datetime
from pathlib import Path
def refuse(*arguments):
    print("connects to", arguments[1:], flush=True)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, *a)
import polars as pl
from perennial.template.pipeline import PIPELINE
from validation.contract import validate
from validation.data_docs import write_data_docs
rows = pl.DataFrame({e.column: ["x"] for e in PIPELINE.contract})
import tempfile
tempfile.mkdtemp = lambda *a, **k: refuse(None, "makes a temporary folder")
found = validate(rows, PIPELINE.contract, "shop")
print(found.verdict.status.name, write_data_docs(Path(sys.argv[1]), PIPELINE, found, "score", datetime(2026, 1, 1, tzinfo=UTC)))
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("FAIL ")
    assert "connects to" not in ran.stdout
