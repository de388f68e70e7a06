"""A month of what a Terraform plan makes, from `terraform show -json`, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perennial.cost.prices import Prices, how_to_add

HOURS_A_MONTH = 730
ZONES = 3
PER_MONTH = {"hour": HOURS_A_MONTH, "month": 1, "GB-month": 1}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """Something of a plan that costs by the hour or the month.

    Attributes:
        part: of the bill, such as `nodes gpu-spot`.
        items: of the table of prices, any of which it may turn out to be: the dearest counts.
        expected: how many units there are all month.
        most: how many there can be all month.
        unit: of the price.
    """

    part: str
    items: tuple[str, ...]
    expected: float
    most: float
    unit: str = "hour"


@dataclass(frozen=True)
class Line:
    """One part of the bill.

    Attributes:
        part: such as `database`.
        expected_usd: a month, as it begins; None where a price is missing.
        most_usd: a month of the most that may run.
        missing: what is needed to know more, a sentence each.
    """

    part: str
    expected_usd: float | None
    most_usd: float | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ByUse:
    """What costs by use, which no plan tells.

    Attributes:
        what: such as `lake and models in S3`.
        item: of the table of prices.
        usd: a unit; None if the table has no price.
        unit: such as GB-month.
    """

    what: str
    item: str
    usd: float | None
    unit: str


@dataclass(frozen=True)
class Bill:
    """A month of a plan in one region.

    Attributes:
        lines: by part; the sum of their figures is the bill without what costs by use.
        by_use: what comes on top, by the unit.
    """

    lines: tuple[Line, ...]
    by_use: tuple[ByUse, ...]

    @property
    def complete(self) -> bool:
        """Whether every part has its price."""
        return not any(line.missing for line in self.lines)

    @property
    def expected_usd(self) -> float:
        """A month, as it begins, of the parts whose prices are known."""
        return sum(line.expected_usd or 0.0 for line in self.lines)

    @property
    def most_usd(self) -> float:
        """A month of the most that may run, of the parts whose prices are known."""
        return sum(line.most_usd or 0.0 for line in self.lines)


def bill_of(plan: Values, prices: Prices) -> Bill:
    """What a plan costs a month.

    Args:
        plan: `terraform show -json PLAN`.
        prices: of the plan's region.
    """
    resources = [r for r in _resources(plan) if r.get("mode", "managed") == "managed"]
    templates = {r["address"]: r["values"] for r in resources if r["type"] == "aws_launch_template"}
    uses: list[Use] = []
    kinds = {r["type"] for r in resources}
    unknown: Counter[str] = Counter()
    for resource in resources:
        kind = resource["type"]
        if kind == "aws_eks_node_group":
            uses += _nodes(resource, templates.get(_template_of(plan, resource), {}))
        elif kind in CHARGED:
            uses += CHARGED[kind](resource["values"])
        elif not _is_free(kind):
            unknown[kind] += 1
    parts = dict.fromkeys(use.part for use in uses)
    lines = [_line(part, [use for use in uses if use.part == part], prices) for part in parts]
    lines.sort(key=lambda line: (-(line.expected_usd or 0.0), -(line.most_usd or 0.0), line.part))
    lines += [
        Line(kind, None, None, (f"what {number} of {kind} cost is not known: see its price list",))
        for kind, number in sorted(unknown.items())
    ]
    if any(name.startswith("t3.") for r in resources for name in r["values"].get("instance_types") or ()):
        kinds.add(T3)
    by_use = tuple(
        ByUse(what, item, price.usd if (price := prices.get(item)) else None, unit)
        for kind, what, item, unit in BY_USE
        if kind in kinds
    )
    return Bill(tuple(lines), by_use)


def gpu_types(plan: Values) -> tuple[str, ...]:
    """Instance types of the plan's spot nodes, on which retrains run; none if it has no such group."""
    groups = (r["values"] for r in _resources(plan) if r["type"] == "aws_eks_node_group")
    spot = (group["instance_types"] for group in groups if group.get("capacity_type") == "SPOT")
    return tuple(dict.fromkeys(name for types in spot for name in types or ()))


def region_of(plan: Values) -> str | None:
    """The plan's region, by its variable `region`; None if it has none."""
    told = plan.get("variables", {}).get("region", {}).get("value")
    return told if isinstance(told, str) else None


def _line(part: str, uses: list[Use], prices: Prices) -> Line:
    asked = [(use, item, prices.get(item)) for use in uses for item in use.items]
    missing = [how_to_add(prices.region, item, use.unit) for use, item, p in asked if not p or p.unit not in PER_MONTH]
    if missing:
        return Line(part, None, None, tuple(dict.fromkeys(missing)))
    month = [
        (use, max(price.usd * PER_MONTH[price.unit] for item in use.items if (price := prices.get(item))))
        for use in uses
    ]
    return Line(part, sum(use.expected * usd for use, usd in month), sum(use.most * usd for use, usd in month))


def _resources(plan: Values) -> Iterator[Values]:
    modules = [plan["planned_values"]["root_module"]]
    while modules:
        module = modules.pop()
        # One whose values are all unknown has none in the JSON.
        yield from ({"values": {}, **resource} for resource in module.get("resources", []))
        modules += module.get("child_modules", [])


def _template_of(plan: Values, group: Values) -> str:
    """Address of a node group's launch template: until it is made, only the configuration tells."""
    configured = plan.get("configuration", {}).get("root_module", {}).get("resources", [])
    blocks = (
        block
        for resource in configured
        if resource["type"] == group["type"] and resource["name"] == group["name"]
        for block in resource.get("expressions", {}).get("launch_template", [])
    )
    names = (name for block in blocks for name in block.get("id", {}).get("references", []))
    return next((name for name in names if name.endswith("]") or name.count(".") == 1), "")


def _nodes(group: Values, template: Values) -> Iterator[Use]:
    values = group["values"]
    # A group's index is its name in gpu_spot.tf; one alone has the name of its resource.
    part = f"nodes {group.get('index') or group['name']}"
    scaling = _first(values.get("scaling_config"))
    begins, most = scaling["desired_size"], scaling["max_size"]
    # Of spot, too, the price on demand: it is never dearer.
    yield Use(part, tuple(f"ec2/{name}" for name in values["instance_types"]), begins, most)
    disk = _first(_first(template.get("block_device_mappings")).get("ebs"))
    size = disk.get("volume_size") or values.get("disk_size") or 20
    yield Use(part, (f"ebs/{disk.get('volume_type') or 'gp3'}",), begins * size, most * size, "GB-month")
    if _first(template.get("monitoring")).get("enabled"):
        yield Use("alarms, node metrics", ("ec2/detailed-monitoring",), begins, most, "month")


def _stream(values: Values) -> list[Use]:
    brokers, node = values["number_of_broker_nodes"], _first(values["broker_node_group_info"])
    size = brokers * _first(_first(node["storage_info"])["ebs_storage_info"])["volume_size"]
    return [
        Use("event stream", (f"msk/{node['instance_type']}",), brokers, brokers),
        Use("event stream", ("msk/storage",), size, size, "GB-month"),
    ]


def _database(values: Values) -> list[Use]:
    copies = 2 if values.get("multi_az") else 1
    size = values["allocated_storage"]
    most = max(size, values.get("max_allocated_storage") or 0)
    uses = [
        Use("database", (f"rds/{values['engine']}/{values['instance_class']}",), copies, copies),
        Use("database", (f"rds/{values['storage_type']}",), copies * size, copies * most, "GB-month"),
    ]
    if values.get("manage_master_user_password"):
        uses.append(Use("secrets", ("secretsmanager/secret",), 1, 1, "month"))
    return uses


def _online_store(values: Values) -> list[Use]:
    nodes = values["num_cache_clusters"]
    return [Use("online features", (f"elasticache/{values['engine']}/{values['node_type']}",), nodes, nodes)]


def _endpoint(values: Values) -> list[Use]:
    if values.get("vpc_endpoint_type") != "Interface":
        return []  # of S3 and DynamoDB, which are free
    zones = len(values.get("subnet_ids") or ()) or ZONES  # of subnets that are still to be made no plan tells
    return [Use("VPC endpoints", ("vpc/interface-endpoint",), zones, zones)]


def _each(part: str, item: str, unit: str = "hour") -> Callable[[Values], list[Use]]:
    return lambda _: [Use(part, (item,), 1, 1, unit)]


CHARGED: Mapping[str, Callable[[Values], list[Use]]] = {
    "aws_eks_cluster": _each("control plane", "eks/cluster"),
    "aws_nat_gateway": _each("NAT gateways", "vpc/nat-gateway"),
    "aws_eip": _each("NAT gateways", "vpc/public-ipv4"),
    "aws_msk_cluster": _stream,
    "aws_db_instance": _database,
    "aws_elasticache_replication_group": _online_store,
    "aws_vpc_endpoint": _endpoint,
    "aws_kms_key": _each("keys", "kms/key", "month"),
    "aws_secretsmanager_secret": _each("secrets", "secretsmanager/secret", "month"),
    "aws_cloudwatch_metric_alarm": _each("alarms, node metrics", "cloudwatch/alarm", "month"),
}

T3 = "nodes of t3"
# Of t3 nodes: EKS leaves their credits unlimited, as AWS does. Of brokers: PER_BROKER, some forty metrics each.
BY_USE = (
    ("aws_s3_bucket", "lake and models in S3", "s3/standard", "GB-month"),
    ("aws_ecr_repository", "images", "ecr/storage", "GB-month"),
    ("aws_nat_gateway", "what passes a NAT gateway", "vpc/nat-traffic", "GB"),
    ("aws_cloudwatch_log_group", "logs", "cloudwatch/log-intake", "GB"),
    ("aws_msk_cluster", "between zones, there and back", "vpc/zone-traffic", "GB"),
    ("aws_msk_cluster", "metrics of the brokers", "cloudwatch/metric", "month"),
    (T3, "processors of t3 above their baseline", "ec2/t3-credit", "hour"),
)

# Without a price of their own: settings of something else, or charged with what they hold or send.
FREE = frozenset(
    f"aws_{name}"
    for name in (
        *("vpc", "subnet", "internet_gateway", "route", "route_table", "route_table_association", "flow_log"),
        *("default_security_group", "security_group", "launch_template", "autoscaling_group_tag"),
        *("s3_bucket", "ecr_repository", "ecr_lifecycle_policy", "glue_catalog_database", "cloudwatch_log_group"),
        *("db_parameter_group", "db_subnet_group", "elasticache_parameter_group", "elasticache_subnet_group"),
        *("msk_configuration", "kms_alias", "kms_key_policy", "secretsmanager_secret_version", "budgets_budget"),
        *("sns_topic", "sns_topic_policy", "sns_topic_subscription", "sqs_queue", "sqs_queue_policy"),
        *("cloudwatch_event_rule", "cloudwatch_event_target", "cloudwatch_log_resource_policy"),
    )
)
FREE_FAMILIES = ("aws_iam_", "aws_s3_bucket_", "aws_eks_a", "aws_eks_pod_", "aws_vpc_security_group_", "terraform_data")


def _is_free(kind: str) -> bool:
    return kind in FREE or kind.startswith(FREE_FAMILIES)


def _first(block: Any) -> Values:
    """The one block of a list of blocks; nothing if there is none."""
    return block[0] if block else {}
