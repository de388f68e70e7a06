"""The contract as a Great Expectations suite, and the running of it. With data_docs.py all that touches the library."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from pipelines.expectation import whole
from pipelines.spec import Expectation

# The context and its batch definition are shared by all calls, and a batch is looked up by name while it is validated.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Found:
    """What Great Expectations found of one expectation.

    Attributes:
        missing_rows: rows without a value, which the expectation passes over.
        rows: positions of the rows that fail it.
        error: why it could not be checked, if so.
    """

    missing_rows: int
    rows: tuple[int, ...]
    error: str | None = None


def compile_suite(
    name: str,
    expectations: Sequence[Expectation],
    schema: Mapping[str, pl.DataType],
    notes: Mapping[str, str] | None = None,
    about: str | None = None,
) -> Any:
    """The expectations as an ExpectationSuite; the position of each is in its `meta`.

    Args:
        name: of the suite.
        expectations: what it expects.
        schema: types of the columns, by which the values of a set are read; a column that is not there is text.
        notes: what each column is, for people.
        about: what the whole is, for people.
    """
    from great_expectations import ExpectationSuite

    compiled = [
        _compile(e, position, schema.get(e.column, pl.String()), (notes or {}).get(e.column))
        for position, e in enumerate(expectations)
    ]
    return ExpectationSuite(name=name, expectations=compiled, notes=about)


def run_suite(frame: pl.DataFrame, expectations: Sequence[Expectation], name: str) -> list[Found]:
    """What Great Expectations finds of each expectation, in order.

    Args:
        frame: a batch that has every column, of a type the expectation can be asked of.
        expectations: what is asked.
        name: of the suite.
    """
    if not expectations:
        return []
    columns = dict.fromkeys(e.column for e in expectations)
    plain = frame.select(_plain(c, frame.schema[c]) for c in columns).to_pandas()
    with _ONE_AT_A_TIME:
        batch = _batch_definition().get_batch({"dataframe": plain})
        validated = batch.validate(
            compile_suite(name, expectations, frame.schema),
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
        )
    # The results come grouped by column, not in the suite's order.
    results = {one.expectation_config.meta["position"]: one for one in validated.results}
    return [_read(results[position]) for position in range(len(expectations))]


def _plain(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column in a type that means the same in pandas."""
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.col(column).cast(pl.String)
    if dtype.is_nested() or dtype == pl.Object:
        # Only whether there is a value can be asked of these.
        return pl.when(pl.col(column).is_not_null()).then(True).alias(column)
    return pl.col(column).cast(pl.Float64) if dtype.is_decimal() else pl.col(column)


def _compile(expectation: Expectation, position: int, dtype: pl.DataType, notes: str | None) -> Any:
    import great_expectations.expectations as gxe

    told: dict[str, Any] = {
        "column": expectation.column,
        "mostly": expectation.mostly,
        "meta": {"position": position},
        "notes": notes,
    }
    match expectation.kind:
        case "not_null":
            return gxe.ExpectColumnValuesToNotBeNull(**told)
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(**told)
        case "matches":
            return gxe.ExpectColumnValuesToMatchRegex(regex=whole(expectation.pattern or ""), **told)
        case "in_set":
            return gxe.ExpectColumnValuesToBeInSet(value_set=_as_type(expectation.values, dtype), **told)
        case "between":
            return gxe.ExpectColumnValuesToBeBetween(
                min_value=expectation.minimum, max_value=expectation.maximum, **told
            )


def _is_whole(value: str) -> bool:
    try:
        int(value)
    except ValueError:
        return False
    return True


def _as_type(values: tuple[str, ...], dtype: pl.DataType) -> list[Any]:
    """The set's values in the column's type; one that has no form there can never be met, and is left out."""
    if dtype == pl.Boolean:
        return [v.lower() == "true" for v in values if v.lower() in ("true", "false")]
    if dtype.is_integer():
        # Not by way of floats, which know only every other number beyond 2**53.
        return [int(v) for v in values if _is_whole(v)]
    if dtype.is_numeric():
        return pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls().to_list()
    return list(values)


def _read(result: Any) -> Found:
    told = result.result
    if "unexpected_index_list" not in told:
        return Found(0, (), next((i["exception_message"] for i in _raised(result.exception_info)), "no result"))
    return Found(told.get("missing_count", 0), tuple(told["unexpected_index_list"] or ()))


def _raised(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Great Expectations tells of one exception flat, of several by metric."""
    flat = [info] if "exception_message" in info else [i for i in info.values() if isinstance(i, Mapping)]
    return [i for i in flat if i.get("exception_message")]


@lru_cache(maxsize=1)
def _batch_definition() -> Any:
    """One ephemeral context for the process: making it and its data source costs more than judging a batch."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    # Its own defaults would leave a folder for a site in the temporary directory of every process.
    config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.enable_analytics(enable=False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("perennial").add_dataframe_asset("batch")
    return asset.add_batch_definition_whole_dataframe("whole")
