"""What a retrain costs on spot and on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perennial.cost.interruptions import Expected, Interruptions, expect
from perennial.cost.prices import Prices

GOAL = 0.60
"""What spot is meant to save of the price on demand."""


@dataclass(frozen=True)
class RetrainCost:
    """One retrain on one instance type.

    Attributes:
        instance_type: of the node.
        on_demand_usd_h: price of an hour on demand; None if the table has none.
        spot_usd_h: price of an hour on spot; None if it is not known either.
        on_demand_usd: what the retrain costs on demand.
        spot_usd: what it costs on spot, on average, interruptions included.
        saving: share of the price on demand that spot saves.
    """

    instance_type: str
    on_demand_usd_h: float | None
    spot_usd_h: float | None
    on_demand_usd: float | None
    spot_usd: float | None
    saving: float | None


@dataclass(frozen=True)
class RetrainCosts:
    """A retrain on each instance type it may get.

    Attributes:
        work_h: hours of work that it takes without an interruption.
        model: what is assumed of spot.
        on_demand: expected times on demand.
        spot: expected times on spot.
        types: by instance type, in the order of the node group.
        spot_is_measured: whether prices on spot are EC2's own of the last days, not an assumed share.
        goal_share: at most which share of the price on demand an hour on spot may cost for the goal to be met.
    """

    work_h: float
    model: Interruptions
    on_demand: Expected
    spot: Expected
    types: tuple[RetrainCost, ...]
    spot_is_measured: bool
    goal_share: float


def retrain_costs(
    work_h: float, instance_types: Sequence[str], prices: Prices, spot_usd_h: Mapping[str, float]
) -> RetrainCosts:
    """What a retrain costs on each instance type.

    Args:
        work_h: hours of work without an interruption, above 0.
        instance_types: that it may run on.
        prices: of the region.
        spot_usd_h: prices of an hour on spot, as EC2 told them; empty = the table's assumed share of on demand.
    """
    model = Interruptions(
        prices.assumed("spot/interruptions"),
        prices.assumed("spot/away") / 60,
        prices.assumed("retrain/start") / 60,
        prices.assumed("retrain/checkpoint") / 60,
    )
    on_demand, spot = expect(work_h, replace(model, rate_per_h=0.0)), expect(work_h, model)

    def one(instance_type: str) -> RetrainCost:
        listed = prices.get(f"ec2/{instance_type}")
        full = listed.usd if listed else None
        assumed = None if spot_usd_h or full is None else full * prices.assumed("spot/share")
        hour = spot_usd_h.get(instance_type, assumed)
        dear = None if full is None else full * on_demand.paid_h
        cheap = None if hour is None else hour * spot.paid_h
        saving = None if dear is None or cheap is None else 1 - cheap / dear
        return RetrainCost(instance_type, full, hour, dear, cheap, saving)

    return RetrainCosts(
        work_h,
        model,
        on_demand,
        spot,
        tuple(one(instance_type) for instance_type in instance_types),
        bool(spot_usd_h),
        (1 - GOAL) * on_demand.paid_h / spot.paid_h,
    )
