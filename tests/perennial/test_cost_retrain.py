"""What a retrain costs on spot and on demand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from aws_account import account as account
from aws_account import moto_server as moto_server
from aws_account import no_account as no_account

from features.lake import Lake
from perennial.cost.prices import Prices, read_prices
from perennial.cost.retrain import retrain_costs
from perennial.cost.spot import is_zone, mean_price, spot_prices
from perennial.settings import Settings
from training.history import Retrain, durations, record_begin, record_retrain

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TABLE = """region,item,usd,unit,as_of,source
here,ec2/small,1.00,hour,2025-01,u
here,spot/small,0.30,hour,2025-01,u
here,ec2/large,2.00,hour,2025-01,u
here,spot/large,1.25,hour,2025-01,u
here,ec2/rare,3.00,hour,2025-01,u
any,spot/interruptions,0.0001,an hour,2025-01,assumption
any,spot/away,6,minutes,2025-01,assumption
any,retrain/start,30,minutes,2025-01,assumption
any,retrain/checkpoint,10,minutes,2025-01,assumption
"""


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    (tmp_path / "prices.csv").write_text(TABLE)
    return read_prices("here", tmp_path / "prices.csv")


def test_hardly_interrupted_spot_saves_what_its_price_saves(prices: Prices) -> None:
    costs = retrain_costs(1.5, ("small",), prices, {})
    (one,) = costs.types
    # Half an hour to start and one and a half of work, at 1.00 and at 0.30.
    assert one.on_demand_usd == pytest.approx(2.0)
    assert one.spot_usd == pytest.approx(0.6, rel=1e-3)
    assert one.saving == pytest.approx(0.7, abs=1e-3)
    assert not costs.spot_is_measured


def test_the_goal_is_met_exactly_at_the_share_that_is_told(prices: Prices) -> None:
    share = retrain_costs(1.5, ("small",), prices, {}).goal_share
    at_the_limit = retrain_costs(1.5, ("small",), prices, {"small": 1.00 * share})
    assert at_the_limit.types[0].saving == pytest.approx(0.60)
    assert at_the_limit.spot_is_measured


def test_a_type_without_a_price_is_no_zero(prices: Prices) -> None:
    (one,) = retrain_costs(1.0, ("new",), prices, {}).types
    assert (one.on_demand_usd, one.spot_usd, one.saving) == (None, None, None)


def test_where_ec2_tells_prices_a_type_it_leaves_out_is_not_assumed(prices: Prices) -> None:
    (one,) = retrain_costs(1.0, ("small",), prices, {"other": 0.1}).types
    assert (one.on_demand_usd, one.spot_usd) == (pytest.approx(1.5), None)


def test_where_nobody_knows_a_price_on_spot_there_is_none(prices: Prices) -> None:
    (one,) = retrain_costs(1.0, ("rare",), prices, {}).types
    assert (one.on_demand_usd, one.spot_usd_h, one.saving) == (pytest.approx(4.5), None, None)


def test_a_group_saves_of_its_first_type_on_demand_and_may_cost_more(prices: Prices) -> None:
    costs = retrain_costs(1.5, ("small", "large"), prices, {})
    # The first on demand is 1.00 an hour; on spot EC2 gives what costs 0.30, or what costs 1.25.
    assert (costs.saves_at_best, costs.saves_at_worst) == (pytest.approx(0.7, abs=1e-3), pytest.approx(-0.25, abs=1e-3))
    assert costs.types[1].saving == pytest.approx(0.375, abs=1e-3)  # of its own price on demand
    unknown = retrain_costs(1.5, ("small", "rare"), prices, {})
    assert (unknown.saves_at_best, unknown.saves_at_worst) == (None, None)


@pytest.mark.parametrize(
    ("zone", "own"),
    [("us-east-1a", True), ("us-east-1f", True), ("us-east-1-atl-2a", False), ("us-east-1-wl1-bos-wlz-1", False)],
)
def test_local_zones_have_prices_that_no_cluster_pays(zone: str, own: bool) -> None:
    assert is_zone(zone, "us-east-1") is own


def test_a_price_counts_for_as_long_as_it_holds() -> None:
    begin = NOW - 8 * HOUR
    # 0.20 from before the window for six hours of it, then 0.40 for two: (6 * 0.20 + 2 * 0.40) / 8
    changes = [(NOW - 2 * HOUR, 0.40), (NOW - 30 * HOUR, 0.20)]
    assert mean_price(changes, begin, NOW) == pytest.approx(0.25)
    assert mean_price([(NOW - 40 * HOUR, 0.9), *changes], begin, NOW) == pytest.approx(0.25)
    assert mean_price([(NOW - 90 * HOUR, 0.3)], begin, NOW) == pytest.approx(0.3)
    assert mean_price([(NOW, 0.3)], begin, NOW) == pytest.approx(0.3)


def test_an_account_is_asked_for_its_prices(account: str) -> None:
    told = spot_prices("us-east-1", ("g5.xlarge", "g4dn.xlarge"), datetime.now(UTC))
    import boto3

    history = boto3.client("ec2").describe_spot_price_history(InstanceTypes=["g5.xlarge"])["SpotPriceHistory"]
    by_zone = {row["AvailabilityZone"]: float(row["SpotPrice"]) for row in history}
    assert told.keys() == {"g5.xlarge", "g4dn.xlarge"}
    assert told["g5.xlarge"] == pytest.approx(sum(by_zone.values()) / len(by_zone))


def test_without_credentials_or_an_answer_there_are_no_prices(no_account: pytest.MonkeyPatch) -> None:
    assert spot_prices("us-east-1", ("g5.xlarge",), NOW) == {}
    no_account.setenv("AWS_ACCESS_KEY_ID", "key")
    no_account.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert spot_prices("us-east-1", ("g5.xlarge",), NOW) == {}


def retrain(as_of: datetime) -> Retrain:
    return Retrain(as_of, "by hand", "lightgbm", "accepted", "better", 0.7, 0.71, "1")


def test_how_long_retrains_took_is_known_from_their_record(tmp_path: Path) -> None:
    lake = Lake(Settings(home=tmp_path), "shop")
    assert durations(lake) == []
    for day, took in ((1, timedelta(minutes=7)), (2, timedelta(minutes=9))):
        as_of = NOW + timedelta(days=day)
        record_begin(lake, as_of, "by hand", "lightgbm", as_of)
        record_retrain(lake, retrain(as_of), as_of + took)
    record_begin(lake, NOW + timedelta(days=3), "never ended", "lightgbm", NOW)
    killed = NOW + timedelta(days=4)  # begun, killed, begun anew from its checkpoint: neither span is what it took
    record_begin(lake, killed, "by hand", "lightgbm", killed)
    record_begin(lake, killed, "by hand", "lightgbm", killed + 5 * HOUR)
    record_retrain(lake, retrain(killed), killed + 6 * HOUR)
    assert durations(lake) == [timedelta(minutes=7), timedelta(minutes=9)]
    assert lake.read("retrains").select(pl.len()).item() == 8
