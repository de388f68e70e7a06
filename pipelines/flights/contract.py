"""What valid feature rows of a flight are."""

from __future__ import annotations

from pipelines.spec import Expectation

# An odd row is put aside by itself; where more than one in a hundred are bad, and not by chance, the batch stops. Keys are
# strict: a row without a proper one can never meet its label, and says that a producer is broken.
MOSTLY = 0.99

CONTRACT = (
    Expectation(column="entity_key", kind="not_null"),
    Expectation(column="entity_key", kind="matches", pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[A-Z0-9]{2}-[0-9]+-[A-Z]{3}"),
    Expectation(column="origin", kind="in_set", values=("EWR", "JFK", "LGA"), mostly=MOSTLY),
    Expectation(column="carrier", kind="matches", pattern=r"[A-Z0-9]{2}", mostly=MOSTLY),
    Expectation(column="destination", kind="matches", pattern=r"[A-Z]{3}", mostly=MOSTLY),
    Expectation(column="departure_minute", kind="between", minimum=0, maximum=1_439, mostly=MOSTLY),
    Expectation(column="departure_weekday", kind="between", minimum=1, maximum=7, mostly=MOSTLY),
    Expectation(column="distance_mi", kind="between", minimum=10, maximum=6_000, mostly=MOSTLY),
    Expectation(column="origin_departure_delay_mean_3h", kind="between", minimum=-60, maximum=2_000, mostly=MOSTLY),
    Expectation(column="aircraft_arrival_delay_last_24h", kind="between", minimum=-120, maximum=2_000, mostly=MOSTLY),
    Expectation(column="origin_temperature_f_last_3h", kind="between", minimum=-40, maximum=130, mostly=MOSTLY),
    Expectation(column="origin_humidity_pct_last_3h", kind="between", minimum=0, maximum=100, mostly=MOSTLY),
)
