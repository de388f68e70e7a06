"""A shop whose features are online: the rows that tests write, and what the store then holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.store import OnlineWriter
from perennial.settings import Settings
from pipelines.spec import Aggregate, EventField, EventSpec, Feature, FeatureView, LabelSpec, PipelineSpec, ScoredSpec

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
ASKED = EventSpec(
    topic="toys.asked.v1",
    fields=(
        EventField(name="toy", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="shop", type="string", nullable=True),
        EventField(name="price", type="float"),
        EventField(name="sold", type="bool"),
    ),
    event_timestamp="event_timestamp",
    event_id=("toy",),
    partition_key="toy",
)
NAMES = ("shop_price_mean_1h", "shop_price_last_1h")


def toys(name: str = "toys", features: Sequence[str] = NAMES, view: str = "shop_prices") -> PipelineSpec:
    aggregates = tuple(Aggregate(name=n, field="price", function="mean", window_s=3_600) for n in features)
    return PipelineSpec(
        name=name,
        description="A shop and its prices.",
        events=(ASKED,),
        scored=ScoredSpec(topic=ASKED.topic, key="toy"),
        label=LabelSpec(topic=ASKED.topic, key="toy", value=lambda f: f["sold"], horizon_s=3_600),
        views=(
            FeatureView(
                name=view, entity="shop", topic=ASKED.topic, key="shop", aggregates=aggregates, ttl_s=100 * 86_400
            ),
        ),
        request_features=lambda f: f.select("price"),
        features=(Feature(name="price", kind="numeric"), *(Feature(name=n, kind="numeric") for n in features)),
        contract=(),
        replay=lambda start, end: {},
    )


SPEC = toys()
VIEW = SPEC.views[0]

Row = tuple[str, datetime, datetime, float | None, float | None]


def frame(*rows: Row, features: Sequence[str] = NAMES) -> pl.DataFrame:
    """(shop, event time, created time, mean, last)."""
    moment = pl.Datetime("us", "UTC")
    schema = {"shop": pl.String, "event_timestamp": moment, "created_timestamp": moment}
    return pl.DataFrame(rows, schema=schema | dict.fromkeys(features, pl.Float64), orient="row")


def held(writer: OnlineWriter, view: FeatureView = VIEW) -> dict[str, tuple[Any, ...]]:
    """What the store holds, by key."""
    keys = sorted({key for batch in writer.keys(view) for key in batch})
    return {key: tuple(rest) for key, *rest in writer.read(view, keys).iter_rows()}


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return Settings(home=tmp_path)
    server = request.getfixturevalue("redis_server")
    server.client.flushall()
    return Settings(home=tmp_path, online_store_url=server.url)
