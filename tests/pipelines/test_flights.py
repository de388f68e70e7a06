from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipelines.flights.events import ARRIVED, DEPARTED, SCHEDULED, WEATHER, flight_events, replay, weather_events
from pipelines.flights.features import schedule_features
from pipelines.flights.pipeline import PIPELINE

RAW = {
    "year": 2013,
    "month": 1,
    "day": 1,
    "dep_time": 517,
    "sched_dep_time": 515,
    "dep_delay": 2,
    "arr_time": 830,
    "sched_arr_time": 819,
    "arr_delay": 11,
    "carrier": "UA",
    "flight": 1545,
    "tailnum": "N14228",
    "origin": "EWR",
    "dest": "IAH",
    "air_time": 227,
    "distance": 1400,
    "hour": 5,
    "minute": 15,
    "time_hour": "2013-01-01T10:00:00Z",
}


def utc(month: int, day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2013, month, day, hour, minute, tzinfo=UTC)


def events(**changes: object) -> dict[str, pl.DataFrame]:
    raw = pl.DataFrame([{**RAW, **changes}])
    return flight_events(
        raw.with_columns(pl.col(pl.Null).cast(pl.Int64)).with_columns(pl.col("tailnum").cast(pl.String))
    )


def test_a_flight_is_three_events() -> None:
    made = events()
    flight = "2013-01-01-UA-1545-EWR"
    scheduled, departed, arrived = (made[e.topic].row(0, named=True) for e in (SCHEDULED, DEPARTED, ARRIVED))
    assert (scheduled["flight_id"], departed["flight_id"], arrived["flight_id"]) == (flight,) * 3
    assert scheduled["scheduled_departure"] == utc(1, 1, 10, 15)
    assert scheduled["event_timestamp"] == utc(1, 1, 9, 15)
    assert departed["event_timestamp"] == utc(1, 1, 10, 17)
    # 8:30 in Houston is 14:30 UTC, which no column says: 227 minutes in the air and the two clocks do.
    assert arrived["event_timestamp"] == utc(1, 1, 14, 30)
    assert (departed["departure_delay_min"], arrived["arrival_delay_min"]) == (2.0, 11.0)
    assert (scheduled["distance_mi"], scheduled["flight_number"]) == (1_400.0, 1_545)


@pytest.mark.parametrize(
    ("changes", "arrives"),
    [
        # Los Angeles: 9:06 Pacific, an hour earlier than Mountain, three than New York.
        ({"dest": "LAX", "dep_time": 558, "dep_delay": 43, "arr_time": 924, "air_time": 345}, utc(1, 1, 17, 24)),
        # Honolulu: 4:00 pm on the clock there after eleven hours.
        ({"dest": "HNL", "dep_time": 1000, "dep_delay": 285, "arr_time": 1616, "air_time": 656}, utc(1, 2, 2, 16)),
        # Past midnight: departs at 23:50, arrives at 0:53.
        ({"dest": "BOS", "dep_time": 2350, "dep_delay": 1115, "arr_time": 53, "air_time": 38}, utc(1, 2, 5, 53)),
        # The clock reads 2400 at midnight.
        ({"dest": "BOS", "dep_time": 2255, "dep_delay": 1060, "arr_time": 2400, "air_time": 38}, utc(1, 2, 5, 0)),
    ],
    ids=["Los Angeles", "Honolulu", "past midnight", "2400"],
)
def test_the_arrivals_instant_needs_no_time_zone(changes: dict[str, object], arrives: datetime) -> None:
    assert events(**changes)[ARRIVED.topic]["event_timestamp"][0] == arrives


def test_a_cancelled_flight_is_only_scheduled() -> None:
    made = events(dep_time=None, dep_delay=None, arr_time=None, arr_delay=None, air_time=None, tailnum=None)
    assert (made[SCHEDULED.topic].height, made[DEPARTED.topic].height, made[ARRIVED.topic].height) == (1, 0, 0)
    assert made[SCHEDULED.topic]["tail_number"].to_list() == [None]


def test_a_diverted_flight_departs_and_has_no_label() -> None:
    made = events(arr_delay=None, air_time=None)
    assert (made[DEPARTED.topic].height, made[ARRIVED.topic].height) == (1, 0)


def test_late_is_more_than_fifteen_minutes() -> None:
    arrivals = pl.DataFrame({"arrival_delay_min": [15.0, 15.5, -3.0, None]})
    assert PIPELINE.label.value(arrivals).to_list() == [False, True, False, None]


def test_schedule_features_read_the_clock_in_new_york_in_winter_and_in_summer() -> None:
    made = pl.concat([events()[SCHEDULED.topic], events(month=7, time_hour="2013-07-01T09:00:00Z")[SCHEDULED.topic]])
    features = schedule_features(made)
    assert features["departure_minute"].to_list() == [5 * 60 + 15.0] * 2
    assert features["departure_weekday"].to_list() == [2.0, 1.0]  # a Tuesday and a Monday


def test_weather_keeps_what_was_not_measured_as_missing(tmp_path: Path) -> None:
    csv = tmp_path / "weather.csv"
    csv.write_text(
        "origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour\n"
        "JFK,2013,1,1,2,39.02,26.1,59.4,270,NA,NA,0,1012,10,2013-01-01T07:00:00Z\n"
        "JFK,2013,1,1,1,NA,26.1,59.4,270,10.4,NA,0,1012,10,2013-01-01T06:00:00Z\n"
    )
    made = weather_events(csv)
    assert made["event_timestamp"].to_list() == [utc(1, 1, 6), utc(1, 1, 7)]
    assert made["temperature_f"].to_list() == [None, 39.02]
    assert made["wind_speed_mph"].to_list() == [10.4, None]
    assert dict(made.schema) == WEATHER.schema_


YEAR = datetime(2012, 12, 30, tzinfo=UTC), datetime(2014, 1, 5, tzinfo=UTC)


def test_the_year_has_the_flights_that_its_package_says() -> None:
    year = replay(*YEAR)
    assert year[SCHEDULED.topic].height == 336_776
    assert year[DEPARTED.topic].height == 336_776 - 8_255
    assert year[ARRIVED.topic].height == 336_776 - 9_430
    assert year[WEATHER.topic].height == 26_115


def test_no_clock_of_the_year_is_absurd() -> None:
    year = replay(*YEAR)
    both = year[DEPARTED.topic].join(year[ARRIVED.topic], on="flight_id", suffix="_arrived")
    minutes = (both["event_timestamp_arrived"] - both["event_timestamp"]).dt.total_minutes()
    assert both.height == year[ARRIVED.topic].height
    assert minutes.min() > 15
    assert minutes.max() < 14 * 60


def test_daylight_saving_neither_doubles_nor_skips_an_hour() -> None:
    # Clocks went forward on March 10, 2:00, and back on November 3, 2:00: the days have 23 and 25 hours.
    for day, hours in ((date(2013, 3, 10), 23), (date(2013, 11, 3), 25)):
        midnight = pl.Series([day]).cast(pl.Datetime("us")).dt.replace_time_zone("America/New_York")
        start = midnight.dt.convert_time_zone("UTC")[0]
        weather = replay(start, start + timedelta(hours=hours))[WEATHER.topic]
        assert weather["event_timestamp"].n_unique() <= hours
        flights = replay(start - timedelta(hours=1), start + timedelta(hours=hours - 1))[SCHEDULED.topic]
        local = flights["scheduled_departure"].dt.convert_time_zone("America/New_York").dt.date()
        assert set(local) == {day}
        # Each flight's id carries its local date.
        assert flights["flight_id"].str.starts_with(str(day)).all()
