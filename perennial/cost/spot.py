"""EC2's own prices on spot, where an account can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

CONNECT_S, READ_S = 2, 5


def spot_prices(region: str, instance_types: Sequence[str], now: datetime, days: int = 7) -> dict[str, float]:
    """What an hour of each instance type cost on spot, on average over the last days and the region's zones.

    Args:
        region: such as us-east-1.
        instance_types: that are looked for.
        now: end of the days (UTC).
        days: how many.

    Returns:
        US dollars an hour by type; a type without a price is not in it; nothing where there are no credentials or EC2
        does not tell.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    quick = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"total_max_attempts": 2})
    begin = now - timedelta(days=days)
    try:
        session = boto3.Session(region_name=region)
        if session.get_credentials() is None:
            return {}
        pages = session.client("ec2", config=quick).get_paginator("describe_spot_price_history")
        told = pages.paginate(
            InstanceTypes=list(instance_types), ProductDescriptions=["Linux/UNIX"], StartTime=begin, EndTime=now
        )
        rows = [row for page in told for row in page["SpotPriceHistory"]]
    except (BotoCoreError, ClientError):
        return {}
    by_type: dict[str, dict[str, list[tuple[datetime, float]]]] = {}
    for row in rows:
        if not is_zone(row["AvailabilityZone"], region):
            continue
        zones = by_type.setdefault(row["InstanceType"], {})
        zones.setdefault(row["AvailabilityZone"], []).append((row["Timestamp"], float(row["SpotPrice"])))
    return {
        name: sum(mean_price(changes, begin, now) for changes in zones.values()) / len(zones)
        for name, zones in by_type.items()
    }


def is_zone(name: str, region: str) -> bool:
    """Whether a name is one of the region's own zones, and no local zone, such as us-east-1-atl-2a, where no cluster is."""
    return name.startswith(region) and len(name) == len(region) + 1


def mean_price(changes: Iterable[tuple[datetime, Any]], begin: datetime, end: datetime) -> float:
    """The mean over time of a price that is told at each of its changes.

    Args:
        changes: moments and prices, at least one; the first may be before `begin`, whose price then holds at `begin`.
        begin: first moment that counts. What came before the first change is not known and does not count.
        end: last moment that counts.
    """
    known = sorted(changes)
    steps = [*((max(at, begin), price) for at, price in known), (end, known[-1][1])]
    weighed = [((later - at).total_seconds(), price) for (at, price), (later, _) in pairwise(steps) if later > at]
    seconds = sum(weight for weight, _ in weighed)
    return sum(weight * price for weight, price in weighed) / seconds if seconds else float(known[-1][1])
