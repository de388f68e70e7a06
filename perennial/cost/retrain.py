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
        spot_is_measured: whether prices on spot are EC2's own of the last days, not those of the table.
        saves_at_best: share that spot saves where EC2 gives the cheapest type on spot, of what the group on demand pays for
            its first type, which it buys as long as there is one; below 0 where spot costs more; None if a price is missing.
        saves_at_worst: the same where it gives the dearest.
        goal_share: at most which share of the price on demand an hour on spot may cost for the goal to be met.
    """

    work_h: float
    model: Interruptions
    on_demand: Expected
    spot: Expected
    types: tuple[RetrainCost, ...]
    spot_is_measured: bool
    saves_at_best: float | None
    saves_at_worst: float | None
    goal_share: float


def retrain_costs(
    work_h: float, instance_types: Sequence[str], prices: Prices, spot_usd_h: Mapping[str, float]
) -> RetrainCosts:
    """What a retrain costs on each instance type.

    Args:
        work_h: hours of work without an interruption, above 0.
        instance_types: that it may run on, in the order of the node group. It is taken to last as long on each.
        prices: of the region.
        spot_usd_h: prices of an hour on spot, as EC2 told them; empty = those of the table.
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
        kept = None if spot_usd_h else prices.get(f"spot/{instance_type}")
        hour = kept.usd if kept else spot_usd_h.get(instance_type)
        dear = None if full is None else full * on_demand.paid_h
        cheap = None if hour is None else hour * spot.paid_h
        saving = None if dear is None or cheap is None else 1 - cheap / dear
        return RetrainCost(instance_type, full, hour, dear, cheap, saving)

    types = tuple(one(instance_type) for instance_type in instance_types)
    best, worst = _group_savings(types)
    return RetrainCosts(
        work_h,
        model,
        on_demand,
        spot,
        types,
        bool(spot_usd_h),
        best,
        worst,
        (1 - GOAL) * on_demand.paid_h / spot.paid_h,
    )


def _group_savings(types: Sequence[RetrainCost]) -> tuple[float | None, float | None]:
    """What the spot group saves with its cheapest and with its dearest type, of the first type on demand."""
    spot = [one.spot_usd for one in types if one.spot_usd is not None]
    dear = types[0].on_demand_usd if types else None
    if dear is None or len(spot) < len(types):
        return None, None
    return 1 - min(spot) / dear, 1 - max(spot) / dear
