from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipelines.spec import Feature
from training.dataset import TrainingSet

FEATURES = (
    Feature(name="shop", kind="categorical"),
    Feature(name="colour", kind="categorical"),
    Feature(name="price", kind="numeric"),
    Feature(name="visits", kind="numeric"),
    Feature(name="returning", kind="numeric"),
)
AS_OF = datetime(2024, 5, 1, tzinfo=UTC)


def shop_rows(rows: int, seed: int) -> pl.DataFrame:
    """Rows whose label depends on the shop, and on the price only where there are visits."""
    rng = np.random.default_rng(seed)
    shop, price, visits = rng.integers(0, 6, rows), rng.normal(size=rows), rng.integers(0, 4, rows)
    odds = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])[shop] + price * (visits > 1)
    return pl.DataFrame(
        {
            "entity_key": [f"o{i}" for i in range(rows)],
            "event_timestamp": [AS_OF - timedelta(minutes=i) for i in range(rows)],
            "shop": [f"shop-{s}" for s in shop],
            "colour": [None if c == 0 else f"c{c}" for c in rng.integers(0, 3, rows)],
            "price": np.where(rng.random(rows) < 0.1, np.nan, price),
            "visits": visits,
            "returning": rng.random(rows) < 0.3,
            "label": rng.random(rows) < 1 / (1 + np.exp(-odds)),
        }
    ).with_columns(pl.col("price").fill_nan(None))


@pytest.fixture(scope="session")
def make_training_set() -> Callable[..., TrainingSet]:
    def make(rows: int = 3_000, seed: int = 1) -> TrainingSet:
        return TrainingSet("shops", AS_OF, FEATURES, shop_rows(rows, seed), shop_rows(1_000, seed + 1), {"orders": 12})

    return make


@pytest.fixture(scope="session")
def training_set(make_training_set: Callable[..., TrainingSet]) -> TrainingSet:
    return make_training_set()
