"""What valid feature rows of an order are. Rows that are not are quarantined, and raise an alert.

`entity_key` is the scored event's key; the other columns are the features. Missing values pass every expectation but
`not_null`.
"""

from __future__ import annotations

from pipelines.spec import Expectation

from .events import PRODUCTS

CONTRACT = (
    Expectation(column="entity_key", kind="not_null"),
    Expectation(column="entity_key", kind="matches", pattern=r"^o\d+$"),
    Expectation(column="price_eur", kind="not_null"),
    Expectation(column="price_eur", kind="between", minimum=0, maximum=10_000),
    Expectation(column="product", kind="in_set", values=PRODUCTS),
    # `mostly` is the share of rows that must meet it: here a few outliers are no alarm.
    Expectation(column="customer_view_duration_mean_1d", kind="between", minimum=0, maximum=3_600, mostly=0.99),
    Expectation(column="product_sent_back_rate_3d", kind="between", minimum=0, maximum=1),
)
