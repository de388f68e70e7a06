"""Looks at an account, by boto3 alone, and says what is wrong with what Terraform made there. Nothing found is an empty list.

Where there is nothing to look at, that is a finding, too.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

AUTOSCALER_TAG = "k8s.io/cluster-autoscaler/node-template/"


def statements(policy: str) -> list[dict[str, Any]]:
    """A policy's statements, whatever is single in it made a list."""
    found = json.loads(policy)["Statement"]
    return [{**one, **{key: _list(one[key]) for key in ("Action", "Resource") if key in one}} for one in _list(found)]


def buckets_that_take_plain_http(s3: Any, prefix: str) -> list[str]:
    """Buckets whose policy does not refuse every request that comes without TLS."""
    names = _buckets(s3, prefix)
    wrong = [] if names else [f"no bucket begins with {prefix}"]
    for name in names:
        try:
            policy = s3.get_bucket_policy(Bucket=name)["Policy"]
        except s3.exceptions.ClientError:
            wrong.append(f"{name} has no policy")
            continue
        arn = f"arn:aws:s3:::{name}"
        refusals = [
            one
            for one in statements(policy)
            if one["Effect"] == "Deny"
            and one["Action"] == ["s3:*"]
            and set(one["Resource"]) == {arn, f"{arn}/*"}
            and one["Principal"] in ("*", {"AWS": "*"})
            and one.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}}
        ]
        if not refusals:
            wrong.append(f"{name} takes requests without TLS")
    return wrong


def buckets_that_are_open_or_forget(s3: Any, prefix: str) -> list[str]:
    """Buckets that could become public, keep no old versions, keep them for ever, or do not encrypt with a key of ours."""
    names = _buckets(s3, prefix)
    wrong = [] if names else [f"no bucket begins with {prefix}"]
    for name in names:
        block = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
        wrong += [f"{name}: {key} is off" for key, on in block.items() if not on]
        if s3.get_bucket_versioning(Bucket=name).get("Status") != "Enabled":
            wrong.append(f"{name} keeps no old versions")
        rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
        if not any("NoncurrentVersionExpiration" in rule for rule in rules):
            wrong.append(f"{name} keeps old versions for ever")
        rule = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
        by = rule["ApplyServerSideEncryptionByDefault"]
        if not name.endswith("-access-logs") and not (by["SSEAlgorithm"] == "aws:kms" and "KMSMasterKeyID" in by):
            wrong.append(f"{name} is encrypted by {by}")
    return wrong


def gpu_groups_that_surprise(eks: Any, cluster: str) -> list[str]:
    """GPU node groups that cost money while idle, are not of the capacity their name says, or let any pod in."""
    groups = {
        name: eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
        for name in _groups(eks, cluster)
    }
    wrong = []
    expected = {
        f"{cluster}-gpu-spot": ("SPOT", {"nvidia.com/gpu", "perennial/capacity"}),
        f"{cluster}-gpu-on-demand": ("ON_DEMAND", {"nvidia.com/gpu"}),
    }
    for name, (capacity, taints) in expected.items():
        if name not in groups:
            wrong.append(f"there is no group {name}")
            continue
        group = groups[name]
        scaling = group["scalingConfig"]
        if group["capacityType"] != capacity:
            wrong.append(f"{name} is {group['capacityType']}")
        if (scaling["minSize"], scaling["desiredSize"]) != (0, 0):
            wrong.append(f"{name} does not go down to zero: {scaling}")
        if {taint["key"] for taint in group["taints"] if taint["effect"] == "NO_SCHEDULE"} != taints:
            wrong.append(f"{name} is kept free by {group['taints']}")
        families = {type_.split(".")[0] for type_ in group["instanceTypes"]}
        if len(families) < 2 or not families <= {"g4dn", "g5", "g6", "g6e"}:
            wrong.append(f"{name} is of {group['instanceTypes']}")
    return wrong


def gpu_groups_that_eks_refuses(eks: Any, ec2: Any, cluster: str) -> list[str]:
    """GPU node groups with a type that is not offered in a zone of theirs.

    EKS makes no such group: "Your requested instance type (...) is not supported in your requested Availability Zone (...)".
    """
    names = [name for name in _groups(eks, cluster) if "-gpu-" in name]
    wrong = [] if len(names) == 2 else [f"{cluster} has the GPU groups {names}"]
    for name in names:
        group = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
        zones = [one["AvailabilityZone"] for one in ec2.describe_subnets(SubnetIds=group["subnets"])["Subnets"]]
        filters = [{"Name": "instance-type", "Values": group["instanceTypes"]}]
        told = ec2.describe_instance_type_offerings(LocationType="availability-zone", Filters=filters)
        offered = {(one["InstanceType"], one["Location"]) for one in told["InstanceTypeOfferings"]}
        wrong += [f"{name}: no {pair}" for pair in product(group["instanceTypes"], zones) if pair not in offered]
        wrong += [] if zones else [f"{name} has no zone"]
    return wrong


def groups_the_autoscaler_cannot_picture(eks: Any, autoscaling: Any, cluster: str) -> list[str]:
    """Groups that go down to zero and whose tags do not say what EKS says of their nodes' labels, taints and GPUs."""
    wrong = []
    for name in _groups(eks, cluster):
        group = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
        if group["scalingConfig"]["minSize"] > 0:
            continue
        scaled = group["resources"]["autoScalingGroups"][0]["name"]
        filters = [{"Name": "auto-scaling-group", "Values": [scaled]}]
        tags = {tag["Key"]: tag["Value"] for tag in autoscaling.describe_tags(Filters=filters)["Tags"]}
        effects = {"NO_SCHEDULE": "NoSchedule"}
        needed = {
            f"{AUTOSCALER_TAG}resources/nvidia.com/gpu": "1",
            **{f"{AUTOSCALER_TAG}label/{key}": value for key, value in group["labels"].items()},
            **{
                f"{AUTOSCALER_TAG}taint/{one['key']}": f"{one['value']}:{effects[one['effect']]}"
                for one in group["taints"]
            },
        }
        wrong += [
            f"{name}: {key} is {tags.get(key)}, not {value}" for key, value in needed.items() if tags.get(key) != value
        ]
    return wrong


def nodes_that_tell_their_credentials(ec2: Any, eks: Any, cluster: str) -> list[str]:
    """Node groups whose nodes answer the old metadata service or a pod's question, or whose disk is not encrypted by our key."""
    names = _groups(eks, cluster)
    wrong = [] if names else [f"{cluster} has no node group"]
    for name in names:
        template = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"].get("launchTemplate")
        if template is None:
            wrong.append(f"{name} has no launch template")
            continue
        versions = ec2.describe_launch_template_versions(
            LaunchTemplateId=template["id"], Versions=[template["version"]]
        )
        data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        metadata = data.get("MetadataOptions", {})
        if metadata.get("HttpTokens") != "required" or metadata.get("HttpPutResponseHopLimit") != 1:
            wrong.append(f"{name} answers metadata by {metadata}")
        disks = [mapping["Ebs"] for mapping in data.get("BlockDeviceMappings", [])]
        if not disks or not all(
            disk.get("Encrypted") and disk.get("KmsKeyId", "").startswith("arn:") for disk in disks
        ):
            wrong.append(f"{name} has disks {disks}")
    return wrong


def roles_that_may_too_much(iam: Any, prefix: str) -> list[str]:
    """Roles with inline statements about every resource, or about every action of a service."""
    roles = [role["RoleName"] for page in iam.get_paginator("list_roles").paginate() for role in page["Roles"]]
    roles = [role for role in roles if role.startswith(f"{prefix}-")]
    wrong = [] if roles else [f"no role begins with {prefix}-"]
    for role in roles:
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for one in statements(json.dumps(document)):
                if "*" in one["Resource"] and not all(map(_lists_only, one["Action"])):
                    wrong.append(f"{role} may {one['Action']} on everything")
                wrong += [f"{role} may {action}" for action in one["Action"] if "*" in action]
    return wrong


def what_a_role_lacks(iam: Any, role: str, needed: dict[str, list[str]]) -> list[str]:
    """What the role's inline statements do not allow, of the actions needed on each resource; conditions are not looked at."""
    allowed = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        allowed += [one for one in statements(json.dumps(document)) if one["Effect"] == "Allow"]
    return [
        f"{role} may not {action} on {resource}"
        for resource, actions in needed.items()
        for action in actions
        if not any(
            action in one["Action"] and any(fnmatchcase(resource, pattern) for pattern in one["Resource"])
            for one in allowed
        )
    ]


def _buckets(s3: Any, prefix: str) -> list[str]:
    return [bucket["Name"] for bucket in s3.list_buckets()["Buckets"] if bucket["Name"].startswith(f"{prefix}-")]


def _lists_only(action: str) -> bool:
    return action.partition(":")[2].startswith("Describe") or action == "ec2:GetInstanceTypesFromInstanceRequirements"


def _groups(eks: Any, cluster: str) -> list[str]:
    return list(eks.list_nodegroups(clusterName=cluster)["nodegroups"])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
