"""What valid feature rows of an order are. A batch is judged before it is scored, and history before it is trained on.

A row that breaks a line is quarantined and not scored. A batch of which too many rows do is not scored at all, and raises an
alert. `entity_key` is the scored event's key; the other columns are the features. Missing values pass every expectation but
`not_null`. `perennial contract check` tries a change on stored rows.
"""

from __future__ import annotations

from pipelines.spec import Expectation

from .events import PRODUCTS

# The share of rows that must meet a line: an odd row is put aside by itself; where more than one in a hundred are bad, and not
# by chance, the batch stops. Keys are strict: a row without a proper one can never meet its label, and says that a producer is
# broken.
MOSTLY = 0.99

CONTRACT = (
    Expectation(column="entity_key", kind="not_null"),
    Expectation(column="entity_key", kind="matches", pattern=r"o[0-9]+"),
    Expectation(column="price_eur", kind="not_null", mostly=MOSTLY),
    Expectation(column="price_eur", kind="between", minimum=0, maximum=10_000, mostly=MOSTLY),
    Expectation(column="product", kind="in_set", values=PRODUCTS, mostly=MOSTLY),
    Expectation(column="customer_view_duration_mean_1d", kind="between", minimum=0, maximum=3_600, mostly=MOSTLY),
    Expectation(column="product_sent_back_rate_3d", kind="between", minimum=0, maximum=1, mostly=MOSTLY),
)
