"""The clock of a run: whatever it comes from, the rest of the product can compute with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import polars as pl
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from flows.context import due, moment

MEANT = datetime(2026, 3, 1, 4, 5, 6, 789_012, tzinfo=UTC)


@pytest.fixture
def run_of_prefect() -> FlowRun:
    """As Prefect's server tells of one."""
    return FlowRun.model_validate_json(
        FlowRun(id=uuid4(), flow_id=uuid4(), name="retrain flights", expected_start_time=MEANT).model_dump_json()
    )


def test_a_run_of_no_moment_is_of_the_one_for_which_prefect_meant_it(run_of_prefect: FlowRun) -> None:
    with FlowRunContext.model_construct(flow_run=run_of_prefect):
        assert due(None) == MEANT
        assert due(MEANT - timedelta(days=1)) == MEANT - timedelta(days=1)


def test_a_run_that_prefect_meant_for_later_is_of_now(run_of_prefect: FlowRun) -> None:
    later = run_of_prefect.model_copy(update={"expected_start_time": datetime.now(UTC) + timedelta(hours=1)})
    before = datetime.now(UTC)
    with FlowRunContext.model_construct(flow_run=later):
        assert before <= due(None) <= datetime.now(UTC)


def test_columns_are_compared_with_what_is_computed_from_prefects_moment(run_of_prefect: FlowRun) -> None:
    frame = pl.DataFrame({"at": [MEANT - timedelta(days=2), MEANT]})
    with FlowRunContext.model_construct(flow_run=run_of_prefect):
        began = due(None)
    assert frame.filter(pl.col("at") < began - timedelta(days=1)).height == 1
    assert frame.filter(pl.col("at") > pl.lit(began) - timedelta(days=1)).height == 1


def test_a_moment_without_a_zone_is_of_utc() -> None:
    assert moment(MEANT.replace(tzinfo=None)) == MEANT
