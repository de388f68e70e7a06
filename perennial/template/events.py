"""The events of an order, and made-up history to replay them from.

An order is placed (this is what gets scored) after its customer viewed a few pages, and within a day it is settled: kept
or sent back (the label). 3 % are never settled.

To make it yours: describe your topics as EventSpecs, say what the label is, and let `replay` read your own history. The
events that arrive live must look the same; whatever does not is kept aside as a dead letter, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import polars as pl

from pipelines.spec import EventField, EventSpec, LabelSpec

ORDER_ID = EventField(name="order_id", type="string")
CUSTOMER_ID = EventField(name="customer_id", type="string")
PRODUCT = EventField(name="product", type="string", description="one of PRODUCTS")
# Every event has this field; features and labels are joined on it. It is when something happened, not when it was sent.
AT = EventField(name="event_timestamp", type="timestamp", description="when it happened, UTC")

PLACED = EventSpec(
    topic="pipeline_name.order_placed.v1",
    fields=(
        ORDER_ID,
        AT,
        CUSTOMER_ID,
        PRODUCT,
        EventField(name="price_eur", type="float", description="of the whole order, EUR"),
        EventField(name="voucher", type="string", nullable=True, description="code that was redeemed; most have none"),
    ),
    event_timestamp="event_timestamp",
    # A second event with the same id is a duplicate and counts once.
    event_id=("order_id",),
    # Kafka keeps the order of events within one key.
    partition_key="customer_id",
)

VIEWED = EventSpec(
    topic="pipeline_name.page_viewed.v1",
    fields=(
        EventField(name="view_id", type="string"),
        AT,
        CUSTOMER_ID,
        EventField(name="duration_s", type="float", description="seconds the page stayed open"),
    ),
    event_timestamp="event_timestamp",
    event_id=("view_id",),
    partition_key="customer_id",
)

SETTLED = EventSpec(
    topic="pipeline_name.order_settled.v1",
    fields=(ORDER_ID, AT, PRODUCT, EventField(name="sent_back", type="bool")),
    event_timestamp="event_timestamp",
    event_id=("order_id",),
    partition_key="order_id",
)


def is_sent_back(settled: pl.DataFrame) -> pl.Series:
    """Whether each settled order was sent back, as booleans; null where that cannot be told."""
    return settled["sent_back"]


# An order that is not settled after two days never will be: its prediction stays without a label.
LABEL = LabelSpec(topic=SETTLED.topic, key="order_id", value=is_sent_back, horizon_s=2 * 86_400)


# What follows makes up six weeks of history. With data of your own, only `replay` remains.

FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 42
# From this day on prices are higher and the mix of products is another one, so that there is drift to see.
SHIFTED_FROM = FIRST_DAY + timedelta(days=35)
ORDERS_PER_DAY = 200
CUSTOMERS = 2_000
PRODUCTS = ("coat", "dress", "hat", "jeans", "shirt", "shoes")
SENT_BACK_ODDS = (0.3, 1.0, -1.2, 0.2, -0.6, 0.6)  # of each product, as log odds
MIX = (0.10, 0.15, 0.15, 0.20, 0.25, 0.15)
SHIFTED_MIX = (0.35, 0.25, 0.05, 0.10, 0.10, 0.15)
MINUTES_PER_DAY = 24 * 60


@lru_cache(maxsize=1)
def _history() -> Mapping[str, pl.DataFrame]:
    """Every event there is, by topic, sorted by event time: the same at every call."""
    rng = np.random.default_rng(7)
    orders = DAYS * ORDERS_PER_DAY
    minute = np.sort(rng.integers(0, DAYS * MINUTES_PER_DAY, orders))
    shifted = minute >= (SHIFTED_FROM - FIRST_DAY).days * MINUTES_PER_DAY
    product = np.where(shifted, rng.choice(6, orders, p=SHIFTED_MIX), rng.choice(6, orders, p=MIX))
    price = np.round(np.exp(rng.normal(3.7, 0.5, orders)) * np.where(shifted, 1.6, 1.0), 2)
    views = rng.poisson(1.5, orders)
    # Customers who hesitate and orders that are dear come back more often; a voucher says nothing.
    odds = np.array(SENT_BACK_ODDS)[product] + 0.8 * (views - 1.5) + 1.0 * (np.log(price) - 3.7) - 0.8
    sent_back = rng.random(orders) < 1 / (1 + np.exp(-odds))
    settled_after = rng.integers(2 * 60, 22 * 60, orders)
    is_settled = rng.random(orders) >= 0.03
    customer = rng.integers(0, CUSTOMERS, orders)

    order = pl.DataFrame(
        {
            "order_id": [f"o{i:06d}" for i in range(orders)],
            "event_timestamp": _moments(minute),
            "customer_id": [f"c{c:04d}" for c in customer],
            "product": [PRODUCTS[p] for p in product],
            "price_eur": price,
            "voucher": [f"SAVE{v}" if v > 0 else None for v in rng.integers(-15, 5, orders)],
            "sent_back": sent_back,
        }
    )
    of_order = np.repeat(np.arange(orders), views)
    viewed = pl.DataFrame(
        {
            "view_id": [f"v{i:06d}" for i in range(len(of_order))],
            "event_timestamp": _moments(minute[of_order] - rng.integers(1, 12 * 60, len(of_order))),
            "customer_id": [f"c{c:04d}" for c in customer[of_order]],
            "duration_s": np.round(rng.exponential(40.0, len(of_order)), 1),
        }
    )
    settled = order.with_columns(event_timestamp=_moments(minute + settled_after)).filter(is_settled)
    return {
        PLACED.topic: _of(PLACED, order),
        VIEWED.topic: _of(VIEWED, viewed),
        SETTLED.topic: _of(SETTLED, settled),
    }


def _moments(minutes: np.ndarray) -> pl.Series:
    return FIRST_DAY + pl.Series(minutes * 60_000_000, dtype=pl.Int64).cast(pl.Duration("us"))


def _of(event: EventSpec, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(dtype) for name, dtype in event.schema_.items()).sort(event.event_timestamp)


def replay(start: datetime, end: datetime) -> Mapping[str, pl.DataFrame]:
    """The events of [start, end), by topic, each sorted by event time.

    Args:
        start: first instant, UTC.
        end: first instant that is left out, UTC.
    """
    within = pl.col("event_timestamp").is_between(start, end, closed="left")
    return {topic: frame.filter(within) for topic, frame in _history().items()}
