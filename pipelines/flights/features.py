"""What the model sees of a flight: what its schedule says, and what the stream knew an hour before departure."""

from __future__ import annotations

import polars as pl

from pipelines.flights.events import ARRIVED, DEPARTED, WEATHER
from pipelines.spec import Aggregate, Feature, FeatureView

HOUR_S = 3_600

VIEWS = (
    FeatureView(
        name="origin_traffic",
        entity="origin",
        topic=DEPARTED.topic,
        key="origin",
        aggregates=(
            Aggregate(
                name="origin_departure_delay_mean_3h", field="departure_delay_min", function="mean", window_s=3 * HOUR_S
            ),
            Aggregate(
                name="origin_departures_count_3h", field="departure_delay_min", function="count", window_s=3 * HOUR_S
            ),
        ),
        ttl_s=3 * HOUR_S,
    ),
    FeatureView(
        name="carrier_traffic",
        entity="carrier",
        topic=DEPARTED.topic,
        key="carrier",
        aggregates=(
            Aggregate(
                name="carrier_departure_delay_mean_3h",
                field="departure_delay_min",
                function="mean",
                window_s=3 * HOUR_S,
            ),
        ),
        ttl_s=3 * HOUR_S,
    ),
    FeatureView(
        name="aircraft",
        entity="tail_number",
        topic=ARRIVED.topic,
        key="tail_number",
        aggregates=(
            Aggregate(
                name="aircraft_arrival_delay_last_24h", field="arrival_delay_min", function="last", window_s=24 * HOUR_S
            ),
        ),
        ttl_s=24 * HOUR_S,
    ),
    FeatureView(
        name="origin_weather",
        entity="origin",
        topic=WEATHER.topic,
        key="origin",
        aggregates=tuple(
            Aggregate(name=f"origin_{measure}_last_3h", field=measure, function="last", window_s=3 * HOUR_S)
            for measure in (
                "temperature_f",
                "humidity_pct",
                "wind_speed_mph",
                "precipitation_in",
                "pressure_mb",
                "visibility_mi",
            )
        ),
        ttl_s=3 * HOUR_S,
    ),
)

FEATURES = (
    Feature(name="departure_minute", kind="numeric", description="local minute of the day of the planned departure"),
    Feature(name="departure_weekday", kind="numeric", description="local weekday, Monday = 1"),
    Feature(name="distance_mi", kind="numeric", description="miles to the destination"),
    Feature(name="carrier", kind="categorical", description="two-letter carrier code"),
    Feature(name="origin", kind="categorical", description="airport of departure"),
    Feature(name="destination", kind="categorical", description="airport of arrival"),
    *(
        Feature(name=a.name, kind="numeric", description=f"streamed: {a.function} of {a.field}")
        for v in VIEWS
        for a in v.aggregates
    ),
)


def schedule_features(scheduled: pl.DataFrame) -> pl.DataFrame:
    """What the schedule itself tells: one row per scheduled flight, in order."""
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    return scheduled.select(
        departure_minute=(local.dt.hour().cast(pl.Float64) * 60 + local.dt.minute().cast(pl.Float64)),
        departure_weekday=local.dt.weekday().cast(pl.Float64),
        distance_mi="distance_mi",
        carrier="carrier",
        origin="origin",
        destination="destination",
    )
