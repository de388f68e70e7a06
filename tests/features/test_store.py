from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from features.lake import Lake
from features.store import OnlineFeatures, historical, open_store, view_table, write_online
from perennial.errors import StateError
from perennial.settings import Settings
from pipelines.spec import Aggregate, EventField, EventSpec, Feature, FeatureView, LabelSpec, PipelineSpec, ScoredSpec

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR_S = 3_600
ASKED = EventSpec(
    topic="toys.asked.v1",
    fields=(
        EventField(name="toy", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="shop", type="int", nullable=True),
        EventField(name="price", type="float"),
        EventField(name="sold", type="bool"),
    ),
    event_timestamp="event_timestamp",
    event_id=("toy",),
    partition_key="toy",
)
VIEW = FeatureView(
    name="shop_prices",
    entity="shop",
    topic=ASKED.topic,
    key="shop",
    aggregates=(Aggregate(name="shop_price_mean_1h", field="price", function="mean", window_s=HOUR_S),),
    ttl_s=2 * HOUR_S,
)
SPEC = PipelineSpec(
    name="toys",
    description="A shop known by a number.",
    events=(ASKED,),
    scored=ScoredSpec(topic=ASKED.topic, key="toy"),
    label=LabelSpec(topic=ASKED.topic, key="toy", value=lambda f: f["sold"], horizon_s=HOUR_S),
    views=(VIEW,),
    request_features=lambda f: f.select("price"),
    features=(Feature(name="price", kind="numeric"), Feature(name="shop_price_mean_1h", kind="numeric")),
    contract=(),
    replay=lambda start, end: {},
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "a home")


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def values(*rows: tuple[int, float, float | None], created: float = 100) -> pl.DataFrame:
    """(shop, hours after T0, mean price), as `build_features` makes them."""
    return pl.DataFrame(
        {
            "shop": [str(r[0]) for r in rows],
            "event_timestamp": [at(r[1]) for r in rows],
            "created_timestamp": [at(created)] * len(rows),
            "shop_price_mean_1h": [r[2] for r in rows],
        },
        schema={
            "shop": pl.String,
            "event_timestamp": pl.Datetime("us", "UTC"),
            "created_timestamp": pl.Datetime("us", "UTC"),
            "shop_price_mean_1h": pl.Float64,
        },
    )


def asked(*rows: tuple[int | None, float]) -> pl.DataFrame:
    """(shop, hours after T0)."""
    return pl.DataFrame(
        {
            "toy": [f"t{i}" for i in range(len(rows))],
            "event_timestamp": [at(r[1]) for r in rows],
            "shop": [r[0] for r in rows],
            "price": [float(i) for i in range(len(rows))],
            "sold": [True] * len(rows),
        },
        schema=ASKED.schema_,
    )


def online(settings: Settings, *rows: tuple[int | None, float]) -> list[float | None]:
    return OnlineFeatures(SPEC, settings).frame(asked(*rows))["shop_price_mean_1h"].to_list()


def offline(
    settings: Settings, *rows: tuple[int | None, float], pins: dict[str, int] | None = None
) -> list[float | None]:
    return historical(SPEC, settings, asked(*rows), pins or {})["shop_price_mean_1h"].to_list()


def test_of_several_rows_of_a_key_the_newest_goes_online(settings: Settings) -> None:
    assert write_online(SPEC, settings, VIEW, values((1, 3, 30.0), (1, 5, 50.0), (2, 1, 1.0), (1, 4, 40.0))) == 2
    assert online(settings, (1, 5), (2, 1)) == [50.0, 1.0]


def test_an_older_value_never_takes_the_place_of_a_newer_one(settings: Settings) -> None:
    write_online(SPEC, settings, VIEW, values((1, 5, 50.0)))
    assert write_online(SPEC, settings, VIEW, values((1, 4, 40.0), (2, 4, 4.0), created=200)) == 1
    assert online(settings, (1, 5), (2, 5)) == [50.0, 4.0]


def test_a_corrected_value_of_the_same_moment_takes_its_place(settings: Settings) -> None:
    write_online(SPEC, settings, VIEW, values((1, 5, 50.0)))
    assert write_online(SPEC, settings, VIEW, values((1, 5, 55.0), created=200)) == 1
    assert online(settings, (1, 5)) == [55.0]


def test_a_missing_value_goes_online_as_missing(settings: Settings) -> None:
    write_online(SPEC, settings, VIEW, values((1, 5, 50.0)))
    write_online(SPEC, settings, VIEW, values((1, 6, None)))
    write_online(SPEC, settings, VIEW, values((2, 6, None), (3, 6, 3.0)))
    assert online(settings, (1, 6), (2, 6), (3, 6)) == [None, None, 3.0]


def test_no_rows_are_nothing_to_write(settings: Settings) -> None:
    assert write_online(SPEC, settings, VIEW, values()) == 0


def test_a_value_counts_up_to_its_time_to_live_online_and_offline(settings: Settings) -> None:
    rows = values((1, 5, 50.0))
    Lake(settings, SPEC.name).append(view_table(VIEW), rows)
    write_online(SPEC, settings, VIEW, rows)
    wanted = ((1, 5), (1, 7), (1, 7.001), (3, 5), (None, 5))
    assert online(settings, *wanted) == [50.0, 50.0, None, None, None]
    assert offline(settings, *wanted) == [50.0, 50.0, None, None, None]


def test_rows_come_back_in_order_with_what_the_event_itself_tells(settings: Settings) -> None:
    Lake(settings, SPEC.name).append(view_table(VIEW), values((1, 1, 10.0), (1, 2, 20.0), (2, 1, 5.0)))
    wanted = asked((2, 2.5), (1, 2.5), (1, 1.5), (1, 0.5))
    frame = historical(SPEC, settings, wanted, {})
    assert frame.columns == ["entity_key", "event_timestamp", "price", "shop_price_mean_1h"]
    assert frame["entity_key"].to_list() == ["t0", "t1", "t2", "t3"]
    assert frame["price"].to_list() == [0.0, 1.0, 2.0, 3.0]
    assert frame["shop_price_mean_1h"].to_list() == [5.0, 20.0, 10.0, None]


def test_a_value_of_the_very_moment_counts_and_one_just_after_does_not(settings: Settings) -> None:
    just_after = 2 + 1e-6 / 3_600
    Lake(settings, SPEC.name).append(view_table(VIEW), values((1, 1, 10.0), (1, 2, 20.0), (1, just_after, 99.0)))
    assert offline(settings, (1, 2)) == [20.0]


def test_of_two_rows_of_a_moment_the_one_created_last_counts(settings: Settings) -> None:
    lake = Lake(settings, SPEC.name)
    lake.append(view_table(VIEW), values((1, 1, 11.0), created=200))
    lake.append(view_table(VIEW), values((1, 1, 10.0), created=100))
    assert offline(settings, (1, 1)) == [11.0]


def test_a_pinned_snapshot_does_not_see_what_came_later(settings: Settings) -> None:
    lake = Lake(settings, SPEC.name)
    pinned = lake.append(view_table(VIEW), values((1, 1, 10.0)))
    lake.append(view_table(VIEW), values((1, 1, 11.0), created=200))
    assert offline(settings, (1, 1), pins={view_table(VIEW): pinned.snapshot_id}) == [10.0]
    assert offline(settings, (1, 1)) == [11.0]


def test_no_scored_events_are_no_rows(settings: Settings) -> None:
    assert historical(SPEC, settings, asked(), {}).height == 0
    assert OnlineFeatures(SPEC, settings).frame(asked()).height == 0


def test_request_features_that_lose_a_row_are_refused(settings: Settings) -> None:
    losing = SPEC.model_copy(update={"request_features": lambda f: f.head(1).select("price")})
    with pytest.raises(StateError, match="made 1 row of 2"):
        historical(losing, settings, asked((1, 1), (1, 2)), {})


def kept_by_feast(settings: Settings) -> bytes:
    return b"".join(path.read_bytes() for path in settings.feast_dir.rglob("*") if path.is_file())


def test_no_address_of_the_lake_is_kept_by_feast(tmp_path: Path) -> None:
    catalog = f"sqlite:///{tmp_path / 'a secret place'}.db"
    settings = Settings(home=tmp_path / "home", lake_catalog_uri=catalog)
    Lake(settings, SPEC.name).append(view_table(VIEW), values((1, 0, 9.0)))
    open_store(SPEC, settings)
    assert b"shop_prices" in kept_by_feast(settings)
    assert b"a secret place" not in kept_by_feast(settings)


def test_a_registry_that_went_missing_is_made_again(settings: Settings) -> None:
    Lake(settings, SPEC.name).append(view_table(VIEW), values((1, 0, 9.0)))
    open_store(SPEC, settings)
    (settings.feast_dir / SPEC.name / "registry.db").unlink()
    assert [v.name for v in open_store(SPEC, settings).list_feature_views()] == ["shop_prices"]


def test_before_the_first_ingest_the_missing_table_is_told(settings: Settings) -> None:
    with pytest.raises(StateError, match=r"the lake has no table toys\.features_shop_prices yet"):
        offline(settings, (1, 5))
