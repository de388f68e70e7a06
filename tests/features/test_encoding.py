from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import SMALL_BATCH_ROWS, Encoder, encode, fit_encoder
from perennial.errors import StateError, UsageError
from pipelines.spec import Feature

CITY, PRICE = Feature(name="city", kind="categorical"), Feature(name="price", kind="numeric")
ENCODER = Encoder((CITY, PRICE), {"city": ("rome", "oslo")})


def test_categories_are_ordered_by_their_target_mean() -> None:
    frame = pl.DataFrame({"city": ["a"] * 100 + ["b"] * 100 + ["c"] * 100})
    labels = np.r_[np.ones(90), np.zeros(10), np.ones(10), np.zeros(90), np.ones(50), np.zeros(50)].astype(bool)
    assert fit_encoder(frame, labels, [CITY]).categories["city"] == ("b", "c", "a")


def test_a_rare_category_is_pulled_to_the_overall_mean() -> None:
    # "rare" is 1/1 and "common" 80/100; the overall mean is 0.5, so shrunk: (1+10)/(1+20)=0.52 and (80+10)/120=0.75.
    frame = pl.DataFrame({"city": ["rare"] + ["common"] * 100 + ["low"] * 61})
    labels = np.r_[True, np.ones(80, bool), np.zeros(20, bool), np.zeros(61, bool)]
    assert labels.mean() == 0.5
    assert fit_encoder(frame, labels, [CITY]).categories["city"] == ("low", "rare", "common")


def test_codes_start_at_one_and_zero_means_missing_or_never_seen() -> None:
    frame = pl.DataFrame({"city": ["rome", "oslo", "bonn", None], "price": [1.0, 2.0, 3.0, 4.0]})
    assert encode(frame, ENCODER)[:, 0].tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("rows", [1, SMALL_BATCH_ROWS + 1])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_number_that_float32_cannot_hold_is_missing(value: float | None, rows: int) -> None:
    frame = pl.DataFrame({"city": ["rome"] * rows, "price": pl.Series([value] * rows, dtype=pl.Float64)})
    assert np.isnan(encode(frame, ENCODER)[:, 1]).all()


@pytest.mark.parametrize("rows", [1, SMALL_BATCH_ROWS + 1])
def test_columns_that_are_null_throughout_are_missing(rows: int) -> None:
    frame = pl.DataFrame({"city": [None] * rows, "price": [None] * rows})
    matrix = encode(frame, ENCODER)
    assert (matrix[:, 0] == 0).all()
    assert np.isnan(matrix[:, 1]).all()


def test_no_rows_give_a_matrix_without_rows() -> None:
    frame = pl.DataFrame(schema={"city": pl.String, "price": pl.Float64})
    assert encode(frame, ENCODER).shape == (0, 2)


COLUMNS = {
    "text": (st.sampled_from(["rome", "oslo", "bonn", "", None]), pl.String, CITY),
    "label": (st.sampled_from(["rome", "oslo", None]), pl.Enum(["rome", "oslo"]), CITY),
    "number": (st.one_of(st.none(), st.floats()), pl.Float64, PRICE),
    "count": (st.one_of(st.none(), st.integers(-(2**62), 2**62)), pl.Int64, PRICE),
    "flag": (st.sampled_from([True, False, None]), pl.Boolean, PRICE),
}


@pytest.mark.parametrize("kind", COLUMNS)
@given(data=st.data())
def test_a_request_and_a_batch_are_encoded_alike(kind: str, data: st.DataObject) -> None:
    values, dtype, feature = COLUMNS[kind]
    encoder = Encoder((feature,), {"city": ("rome", "oslo")} if feature is CITY else {})
    drawn = data.draw(st.lists(values, min_size=1, max_size=5))
    column = pl.Series(feature.name, drawn, dtype=dtype)
    batch = pl.DataFrame({feature.name: pl.concat([column] * (SMALL_BATCH_ROWS + 1))})
    together = encode(batch, encoder)[: len(drawn)]
    one_by_one = np.vstack([encode(batch.slice(i, 1), encoder) for i in range(len(drawn))])
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, one_by_one)


def test_integers_can_be_categories() -> None:
    frame = pl.DataFrame({"city": [7, 8] * 200})
    encoder = fit_encoder(frame, np.array([True, False] * 200), [CITY])
    assert encoder.categories["city"] == ("8", "7")
    assert encode(frame.head(2), encoder)[:, 0].tolist() == [2.0, 1.0]
    assert encode(frame, encoder)[:2, 0].tolist() == [2.0, 1.0]


def test_columns_come_in_the_encoders_order_whatever_the_frames() -> None:
    frame = pl.DataFrame({"price": [3.5], "more": ["x"], "city": ["oslo"]})
    assert encode(frame, ENCODER).tolist() == [[2.0, 3.5]]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match="'price'"):
        encode(pl.DataFrame({"city": ["rome"]}), ENCODER)


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        ({"city": ["rome"], "price": ["cheap"]}, "'price' is of type String"),
        ({"city": [1.5], "price": [1.0]}, "'city' is of type Float64"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(frame: dict[str, list[object]], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        encode(pl.DataFrame(frame), ENCODER)


def test_labels_must_fit_the_rows() -> None:
    with pytest.raises(UsageError, match="2 rows came with 1 label;"):
        fit_encoder(pl.DataFrame({"city": ["a", "b"]}), np.array([True]), [CITY])


@given(st.lists(st.text(), unique=True))
def test_an_encoder_survives_json(categories: list[str]) -> None:
    encoder = Encoder((CITY, PRICE), {"city": tuple(categories)})
    assert Encoder.from_json(encoder.to_json()) == encoder


@pytest.mark.parametrize("text", ["{", "{}", "[]", json.dumps({"features": [{"name": "X Y"}], "categories": {}})])
def test_what_is_no_encoder_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="export the model again"):
        Encoder.from_json(text)
