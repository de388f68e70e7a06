"""A shop whose visits are judged by a contract and scored: the score flow on a real lake, in this or another process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings
from pyiceberg.catalog.sql import SqlCatalog

from features.events import events_schema
from features.labels import PREDICTIONS
from features.lake import Lake
from flows import alert, data_docs, stage
from flows import score as flow
from perennial.errors import StageError
from perennial.settings import Settings
from pipelines.spec import EventField, EventSpec, Expectation, Feature, LabelSpec, PipelineSpec, ScoredSpec
from rollout.ledger import Model
from validation.quarantine import QUARANTINE

T0 = datetime(2026, 1, 1, tzinfo=UTC)
VISIT = EventSpec(
    topic="shop.visit.v1",
    fields=(
        EventField(name="customer", type="string", nullable=True),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="basket_eur", type="float", nullable=True),
        EventField(name="bought", type="bool"),
    ),
    event_timestamp="event_timestamp",
    event_id=("customer", "event_timestamp"),
    partition_key="customer",
)
KEY = Expectation(column="entity_key", kind="not_null")
# One bad row of five may be chance (p = 0.015), one of three (0.009) or two of anything here are not.
BASKET = Expectation(column="basket_eur", kind="between", minimum=0, maximum=1_000, mostly=0.997)
STAGES = ("find_unscored", "build_features", "validate_batch", "quarantine", "predict", "document")


def shop_spec(*contract: Expectation) -> PipelineSpec:
    return PipelineSpec(
        name="shop",
        description="Will this visitor buy?",
        events=(VISIT,),
        scored=ScoredSpec(topic=VISIT.topic, key="customer"),
        label=LabelSpec(topic=VISIT.topic, key="customer", value=lambda f: f["bought"], horizon_s=240 * 3_600),
        views=(),
        request_features=lambda f: f.select("basket_eur"),
        features=(Feature(name="basket_eur", kind="numeric", description="what is in the basket, EUR"),),
        contract=contract or (KEY, BASKET),
        replay=lambda start, end: {},
    )


class Share:
    """A model: the basket's share of 1,000 EUR."""

    def predict(self, frame: pl.DataFrame) -> np.ndarray:
        return frame["basket_eur"].to_numpy() / 1_000


def hours(count: float) -> datetime:
    return T0 + timedelta(hours=count)


def open_lake(home: Path) -> Lake:
    return Lake(Settings(home=home), "shop")


def visit(home: Path, at: float, **baskets: float | None) -> None:
    """One visit a customer, `at` hours after T0; a customer named `nobody` has no key."""
    lake = open_lake(home)
    before = lake.rows(VISIT.table)
    frame = pl.DataFrame(
        {
            "customer": [None if name == "nobody" else name for name in baskets],
            "event_timestamp": [hours(at)] * len(baskets),
            "basket_eur": list(baskets.values()),
            "bought": [True] * len(baskets),
            "kafka_partition": [0] * len(baskets),
            "kafka_offset": range(before, before + len(baskets)),
            "created_timestamp": [hours(at)] * len(baskets),
            "extra": [None] * len(baskets),
        },
        schema=events_schema(VISIT),
    )
    lake.append(VISIT.table, frame)


async def _nobody(_: Settings) -> tuple[()]:
    return ()


def score(
    home: Path,
    as_of: float,
    spec: PipelineSpec | None = None,
    announce: Callable[[str, str, dict[str, Any]], None] = lambda *_: None,
    **stages: Any,
) -> flow.ScoreSummary:
    """A run of the flow with its own stages, without a Prefect server; `stages` go in the place of those named.

    A stage that is not among them would have Prefect start a server, which outlives a process that is killed.
    """
    here = Settings(home=home, mlflow_tracking_uri="http://127.0.0.1:1")  # where nobody listens
    context = SimpleNamespace(settings=here, spec=spec or shop_spec(), lake=open_lake(home))
    no_server = temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}, restore_defaults={PREFECT_API_URL})
    with no_server, ExitStack() as patched:
        for module in (flow, data_docs, alert):
            patched.enter_context(patch.object(module, "open_context", lambda _: context))
        for module in (alert, data_docs, stage):
            patched.enter_context(patch.object(module, "get_run_logger", lambda: logging.getLogger("score")))
        patched.enter_context(patch.object(data_docs, "champion", lambda _: Model("1", "file:///1")))
        given = {name: getattr(flow, name).fn for name in STAGES}
        given |= {
            "champion": lambda _: Model("1", "file:///1"),
            "predictor": lambda _: Share(),
            "announce": announce,
            "alert_targets": _nobody,
            "send_alerts": alert.send_alerts.fn,
            "lasting": alert.lasting.fn,
            "get_run_logger": lambda: logging.getLogger("score"),
            **stages,
        }
        for name, value in given.items():
            patched.enter_context(patch.object(flow, name, value))
        found = asyncio.run(flow.score.fn("shop", hours(as_of)))
        assert isinstance(found, flow.ScoreSummary)
        return found


def scored(home: Path) -> list[str | None]:
    lake = open_lake(home)
    return sorted(lake.read(PREDICTIONS)["entity_key"], key=str) if lake.exists(PREDICTIONS) else []


def aside(home: Path) -> list[str | None]:
    lake = open_lake(home)
    return sorted(lake.read(QUARANTINE)["entity_key"], key=str) if lake.exists(QUARANTINE) else []


def score_until(home: Path, as_of: float, step: str, told: Path) -> None:
    """Score, and be killed before or after the commit of a table; what was announced is in a file."""
    commit = SqlCatalog.commit_table

    @wraps(commit)
    def killed(self: Any, table: Any, *arguments: Any) -> Any:
        name = table.name()[-1]
        if step == f"before {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        done = commit(self, table, *arguments)
        if step == f"after {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def announce(event: str, *_: Any) -> None:
        with told.open("a") as file:
            file.write(f"{event}\n")

    with patch.object(SqlCatalog, "commit_table", killed):
        score(home, as_of, announce=announce)


def score_together(home: Path, as_of: float, meet: Any) -> None:
    """Score, but wait for the other run after the batch was judged; a batch that fails ends as it should."""
    judge = flow.validate_batch.fn

    async def judge_and_meet(*arguments: Any) -> Any:
        judged = await judge(*arguments)
        meet.wait(60)
        return judged

    with suppress(StageError):
        score(home, as_of, validate_batch=judge_and_meet)
