"""A month of a plan, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perennial.cost.bill import Line, bill_of, gpu_types, region_of
from perennial.cost.prices import Prices, read_prices

TABLE = """region,item,usd,unit,as_of,source
here,eks/cluster,0.10,hour,2025-01,u
here,ec2/cheap,0.50,hour,2025-01,u
here,ec2/dear,2.00,hour,2025-01,u
here,ec2/plain,0.20,hour,2025-01,u
here,ec2/detailed-monitoring,2.10,month,2025-01,u
here,ebs/gp3,0.08,GB-month,2025-01,u
here,vpc/nat-gateway,0.045,hour,2025-01,u
here,vpc/public-ipv4,0.005,hour,2025-01,u
here,vpc/nat-traffic,0.045,GB,2025-01,u
here,vpc/interface-endpoint,0.01,hour,2025-01,u
here,msk/kafka.t3.small,0.05,hour,2025-01,u
here,msk/storage,0.10,GB-month,2025-01,u
here,rds/postgres/db.x,0.10,hour,2025-01,u
here,rds/gp3,0.10,GB-month,2025-01,u
here,elasticache/redis/cache.x,0.02,hour,2025-01,u
here,kms/key,1,month,2025-01,u
here,secretsmanager/secret,0.4,month,2025-01,u
here,cloudwatch/alarm,0.1,month,2025-01,u
here,s3/standard,0.023,GB-month,2025-01,u
"""


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    (tmp_path / "prices.csv").write_text(TABLE)
    return read_prices("here", tmp_path / "prices.csv")


def resource(kind: str, name: str = "this", index: str | None = None, **values: Any) -> dict[str, Any]:
    at = f"[{json.dumps(index)}]" if index else ""
    told = {"address": f"{kind}.{name}{at}", "mode": "managed", "type": kind, "name": name, "values": values}
    return {**told, "index": index} if index else told


def plan(*resources: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"planned_values": {"root_module": {"resources": list(resources)}}, **more}


def only(bill: Any) -> Line:
    (line,) = bill.lines
    return line


def test_an_hour_is_paid_730_times_a_month(prices: Prices) -> None:
    assert only(bill_of(plan(resource("aws_eks_cluster")), prices)) == Line("control plane", 73.0, 73.0)


def test_nodes_cost_their_type_their_disk_and_their_metrics(prices: Prices) -> None:
    disk = [{"ebs": [{"volume_size": 50, "volume_type": "gp3"}]}]
    other = [{"ebs": [{"volume_size": 9_999, "volume_type": "gp3"}]}]
    references = [
        'aws_launch_template.node["system"].id',
        'aws_launch_template.node["system"]',
        "aws_launch_template.node",
    ]
    configured = {
        "type": "aws_eks_node_group",
        "name": "system",
        "expressions": {"launch_template": [{"id": {"references": references}}]},
    }
    scaling = [{"desired_size": 2, "min_size": 2, "max_size": 4}]
    told = plan(
        resource("aws_launch_template", "node", "gpu", block_device_mappings=other, monitoring=[{"enabled": False}]),
        resource("aws_launch_template", "node", "system", block_device_mappings=disk, monitoring=[{"enabled": True}]),
        resource(
            "aws_eks_node_group", "system", instance_types=["plain"], capacity_type="ON_DEMAND", scaling_config=scaling
        ),
        configuration={"root_module": {"resources": [configured]}},
    )
    nodes, metrics = bill_of(told, prices).lines
    one = 0.20 * 730 + 50 * 0.08
    assert nodes == Line("nodes system", pytest.approx(2 * one), pytest.approx(4 * one))
    assert metrics == Line("alarms, node metrics", pytest.approx(2 * 2.10), pytest.approx(4 * 2.10))


def test_a_group_at_zero_costs_nothing_until_it_grows_and_then_its_dearest_type(prices: Prices) -> None:
    scaling = [{"desired_size": 0, "min_size": 0, "max_size": 3}]
    types = ["cheap", "dear"]
    spot = resource(
        "aws_eks_node_group",
        "gpu",
        "gpu-spot",
        instance_types=types,
        capacity_type="SPOT",
        scaling_config=scaling,
        disk_size=10,
    )
    line = only(bill_of(plan(spot), prices))
    assert (line.part, line.expected_usd) == ("nodes gpu-spot", 0.0)
    assert line.most_usd == pytest.approx(3 * (2.00 * 730 + 10 * 0.08))
    assert gpu_types(plan(spot)) == ("cheap", "dear")


def test_a_standby_doubles_the_database(prices: Prices) -> None:
    values = {"engine": "postgres", "instance_class": "db.x", "allocated_storage": 20, "storage_type": "gp3"}
    values |= {"max_allocated_storage": 100}
    alone = only(bill_of(plan(resource("aws_db_instance", **values, multi_az=False)), prices))
    assert (alone.expected_usd, alone.most_usd) == (pytest.approx(73 + 2), pytest.approx(73 + 10))
    both = only(bill_of(plan(resource("aws_db_instance", **values, multi_az=True)), prices))
    assert (both.expected_usd, both.most_usd) == (pytest.approx(150), pytest.approx(166))


def test_the_password_that_rds_keeps_is_a_secret_like_others(prices: Prices) -> None:
    values = {"engine": "postgres", "instance_class": "db.x", "allocated_storage": 20, "storage_type": "gp3"}
    database = resource("aws_db_instance", **values, manage_master_user_password=True)
    told = plan(database, resource("aws_secretsmanager_secret", "a"), resource("aws_secretsmanager_secret", "b"))
    secrets = next(line for line in bill_of(told, prices).lines if line.part == "secrets")
    assert secrets.expected_usd == pytest.approx(3 * 0.4)


def test_the_other_parts(prices: Prices) -> None:
    broker = {"instance_type": "kafka.t3.small", "storage_info": [{"ebs_storage_info": [{"volume_size": 50}]}]}
    told = plan(
        resource("aws_msk_cluster", number_of_broker_nodes=3, broker_node_group_info=[broker]),
        resource("aws_elasticache_replication_group", engine="redis", node_type="cache.x", num_cache_clusters=3),
        resource("aws_nat_gateway", index="0"),
        resource("aws_eip", "nat", "0"),
        *(resource("aws_kms_key", index=name) for name in "abcde"),
        *(resource("aws_cloudwatch_metric_alarm", index=name) for name in "abc"),
        resource("aws_vpc_endpoint", "s3", vpc_endpoint_type="Gateway"),
        resource("aws_vpc_endpoint", "ecr", vpc_endpoint_type="Interface", subnet_ids=["a", "b", "c"]),
        resource("aws_iam_role"),
        resource("aws_s3_bucket"),
        resource("aws_s3_bucket_versioning"),
    )
    bill = bill_of(told, prices)
    assert {line.part: round(line.expected_usd or 0, 2) for line in bill.lines} == {
        "event stream": round(3 * 0.05 * 730 + 150 * 0.10, 2),
        "online features": 43.80,
        "NAT gateways": round((0.045 + 0.005) * 730, 2),
        "keys": 5.0,
        "alarms, node metrics": 0.3,
        "VPC endpoints": 21.9,
    }
    assert bill.complete
    assert bill.expected_usd == pytest.approx(109.5 + 15 + 43.8 + 36.5 + 5 + 0.3 + 21.9)
    by_use = {one.item: one.usd for one in bill.by_use}
    assert by_use["s3/standard"] == 0.023
    assert by_use["vpc/zone-traffic"] is None  # the table has no such line
    assert "cloudwatch/metric" in by_use  # brokers at PER_BROKER write metrics that are paid


@pytest.mark.parametrize(("types", "told"), [(["t3.xlarge"], True), (["t3a.xlarge", "m6i.large"], False)])
def test_nodes_of_t3_may_cost_more_than_their_hours(prices: Prices, types: list[str], told: bool) -> None:
    group = resource(
        "aws_eks_node_group", "system", instance_types=types, scaling_config=[{"desired_size": 1, "max_size": 1}]
    )
    assert ("ec2/t3-credit" in {one.item for one in bill_of(plan(group), prices).by_use}) is told


def test_an_endpoint_in_subnets_that_are_still_to_be_made_is_one_in_each_zone(prices: Prices) -> None:
    told = plan(resource("aws_vpc_endpoint", "ecr", vpc_endpoint_type="Interface"))
    assert only(bill_of(told, prices)).expected_usd == pytest.approx(3 * 0.01 * 730)


def test_a_resource_of_which_nothing_is_known_yet_counts(prices: Prices) -> None:
    unknown = resource("aws_nat_gateway", index="0")
    del unknown["values"]
    assert only(bill_of(plan(unknown), prices)).expected_usd == pytest.approx(0.045 * 730)


def test_what_is_only_read_is_not_paid(prices: Prices) -> None:
    read = {**resource("aws_kms_key"), "mode": "data"}
    assert bill_of(plan(read), prices).lines == ()


def test_modules_within_modules_count(prices: Prices) -> None:
    told = plan(resource("aws_kms_key"))
    inner = {"resources": [resource("aws_kms_key")], "child_modules": [{"resources": [resource("aws_kms_key")]}]}
    told["planned_values"]["root_module"]["child_modules"] = [inner]
    assert only(bill_of(told, prices)).expected_usd == pytest.approx(3.0)


def test_a_type_without_a_price_is_no_zero(prices: Prices) -> None:
    values = {"engine": "redis", "node_type": "cache.new", "num_cache_clusters": 1}
    bill = bill_of(plan(resource("aws_elasticache_replication_group", **values), resource("aws_kms_key")), prices)
    assert not bill.complete
    redis = next(line for line in bill.lines if line.part == "online features")
    assert (redis.expected_usd, redis.most_usd) == (None, None)
    assert redis.missing == (
        "add the line `here,elasticache/redis/cache.new,USD,hour,YYYY-MM,URL` to perennial/cost/prices.csv",
    )
    assert bill.expected_usd == pytest.approx(1.0)  # of what is known, and says so


def test_one_type_of_several_without_a_price_leaves_the_group_unknown(prices: Prices) -> None:
    scaling = [{"desired_size": 1, "max_size": 1}]
    group = resource("aws_eks_node_group", "gpu", instance_types=["cheap", "new"], scaling_config=scaling)
    assert only(bill_of(plan(group), prices)).most_usd is None


def test_a_resource_that_nobody_thought_of_is_told(prices: Prices) -> None:
    bill = bill_of(plan(resource("aws_redshift_cluster", "a"), resource("aws_redshift_cluster", "b")), prices)
    assert "2 of aws_redshift_cluster" in only(bill).missing[0]


def test_the_region_comes_from_the_plan() -> None:
    assert region_of(plan(variables={"region": {"value": "eu-central-1"}})) == "eu-central-1"
    assert region_of(plan()) is None
