"""What the model sees of an order: what the event itself tells, and what the stream knew when it was placed.

Streamed features are described, not computed: perennial builds them from the events, the same way for the live stream
and for a backfill, and joins them as they were known at each scored event, so that no future leaks into training.
"""

from __future__ import annotations

import polars as pl

from pipelines.spec import Aggregate, Feature, FeatureView

from .events import SETTLED, VIEWED

DAY_S = 86_400

VIEWS = (
    FeatureView(
        name="customer_views",
        # The column of the scored event that the features are looked up by, and the field of the streamed event it meets.
        entity="customer_id",
        topic=VIEWED.topic,
        key="customer_id",
        aggregates=(
            Aggregate(name="customer_views_count_1d", field="duration_s", function="count", window_s=DAY_S),
            Aggregate(name="customer_view_duration_mean_1d", field="duration_s", function="mean", window_s=DAY_S),
        ),
        # A value older than this no longer counts: the feature is missing.
        ttl_s=DAY_S,
    ),
    FeatureView(
        name="product_returns",
        entity="product",
        topic=SETTLED.topic,
        key="product",
        aggregates=(
            Aggregate(name="product_sent_back_rate_3d", field="sent_back", function="rate", window_s=3 * DAY_S),
        ),
        ttl_s=3 * DAY_S,
    ),
)

# The model's inputs, in the order it takes them.
FEATURES = (
    Feature(name="price_eur", kind="numeric", description="of the whole order, EUR"),
    Feature(name="placed_hour", kind="numeric", description="hour of the day, UTC"),
    Feature(name="has_voucher", kind="numeric", description="1 if a voucher was redeemed, else 0"),
    Feature(name="product", kind="categorical"),
    *(
        Feature(name=a.name, kind="numeric", description=f"streamed: {a.function} of {a.field}")
        for v in VIEWS
        for a in v.aggregates
    ),
)


def order_features(placed: pl.DataFrame) -> pl.DataFrame:
    """What the order itself tells: one row per placed order, in order."""
    return placed.select(
        price_eur="price_eur",
        placed_hour=pl.col("event_timestamp").dt.hour().cast(pl.Float64),
        has_voucher=pl.col("voucher").is_not_null().cast(pl.Float64),
        product="product",
    )
