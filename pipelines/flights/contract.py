"""What valid feature rows of a flight are."""

from __future__ import annotations

from pipelines.spec import Expectation

CONTRACT = (
    Expectation(column="entity_key", kind="not_null"),
    Expectation(column="entity_key", kind="matches", pattern=r"^\d{4}-\d{2}-\d{2}-[A-Z0-9]{2}-\d+-[A-Z]{3}$"),
    Expectation(column="origin", kind="in_set", values=("EWR", "JFK", "LGA")),
    Expectation(column="carrier", kind="matches", pattern=r"^[A-Z0-9]{2}$"),
    Expectation(column="destination", kind="matches", pattern=r"^[A-Z]{3}$"),
    Expectation(column="departure_minute", kind="between", minimum=0, maximum=1_439),
    Expectation(column="departure_weekday", kind="between", minimum=1, maximum=7),
    Expectation(column="distance_mi", kind="between", minimum=10, maximum=6_000),
    Expectation(column="origin_departure_delay_mean_3h", kind="between", minimum=-60, maximum=2_000),
    Expectation(column="aircraft_arrival_delay_last_24h", kind="between", minimum=-120, maximum=2_000),
    Expectation(column="origin_temperature_f_last_3h", kind="between", minimum=-40, maximum=130, mostly=0.99),
    Expectation(column="origin_humidity_pct_last_3h", kind="between", minimum=0, maximum=100, mostly=0.99),
)
