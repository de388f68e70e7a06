"""What moto 5.2.5 and MiniStack 1.5.33 leave out and the AWS provider reads back; starts one of them with it put in.

    python emulator_patches.py moto -H 127.0.0.1 -p 5000      in an environment that has moto
    python emulator_patches.py ministack                      in one that has MiniStack; its options are environment variables

A patch replaces one name and ends the process when that name is gone, so that a newer emulator is not patched by half.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote
from uuid import uuid4


def patched(module: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function, which gets the original as its first argument, into the place of `module`'s `path`.

    Args:
        module: to import.
        path: attributes, or keys of dictionaries, with dots between them.
    """
    owner: Any = importlib.import_module(module)
    *holders, name = path.split(".")
    try:
        for holder in holders:
            owner = getattr(owner, holder)
        original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    except (AttributeError, KeyError):
        sys.exit(f"emulator_patches.py: {module} has no {path} any more; look at what replaced it and mend the patch")

    def put(replacement: Callable[..., Any]) -> Callable[..., Any]:
        called = original.fget if isinstance(original, property) else original

        def with_original(*args: Any, **kwargs: Any) -> Any:
            return replacement(called, *args, **kwargs)

        new = property(with_original) if isinstance(original, property) else with_original
        if isinstance(owner, dict):
            owner[name] = new
        else:
            setattr(owner, name, new)
        return with_original

    return put


def patch_moto() -> None:
    @patched("moto.rds.models", "RDSBackend.create_db_instance")
    def remember_performance_insights(original: Any, self: Any, kwargs: dict[str, Any]) -> Any:
        database = original(self, kwargs)
        if kwargs.get("enable_performance_insights"):
            database.performance_insights_enabled = True
            database.performance_insights_kms_key_id = kwargs.get("performance_insights_kms_key_id")
            database.performance_insights_retention_period = kwargs.get("performance_insights_retention_period", 7)
        return database

    @patched("moto.rds.models", "DBInstance.__init__")
    def give_each_database_an_id_of_its_own(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.dbi_resource_id = f"db-{uuid4().hex[:26].upper()}"  # the provider asks for a database by it

    @patched("moto.rds.models", "MasterUserSecret._generate_secret_string")
    def make_a_password_for_the_user_asked_for(original: Any, self: Any) -> str:
        login = json.loads(original(self))
        return json.dumps({**login, "username": self.resource.master_username, "password": uuid4().hex})

    @patched("moto.rds.models", "DBParameterGroup.update_parameters")
    def say_who_set_it(original: Any, self: Any, parameters: Any) -> Any:
        return original(self, [{**parameter, "Source": "user"} for parameter in parameters])

    @patched("moto.ec2.models.launch_templates", "LaunchTemplateBackend.create_launch_template")
    def keep_template_tags_apart(original: Any, self: Any, name: str, description: str, data: Any, tags: Any) -> Any:
        of_instances = [
            tag for tag in data.get("TagSpecifications", []) if tag.get("ResourceType") != "launch-template"
        ]
        return original(self, name, description, {**data, "TagSpecifications": of_instances}, tags)

    @patched("moto.ec2.models.security_groups", "SecurityGroupRule.description")
    def tell_the_description_of_a_rule_from_a_group(original: Any, self: Any) -> Any:
        return original(self) or (self.source_group or {}).get("Description")


def patch_ministack() -> None:
    from ministack.services import autoscaling, eks, elasticache, msk

    @patched("ministack.services.eks", "_create_cluster")
    def keep_upgrade_policy(original: Any, body: dict[str, Any], *args: Any) -> Any:
        answer = original(body, *args)
        if "upgradePolicy" in body and body.get("name") in eks._clusters:
            eks._clusters[body["name"]]["upgradePolicy"] = body["upgradePolicy"]
        return answer

    @patched("ministack.services.eks", "_create_nodegroup")
    def keep_launch_template(original: Any, cluster: str, body: dict[str, Any]) -> Any:
        answer = original(cluster, body)
        group = eks._nodegroups.get(f"{cluster}/{body.get('nodegroupName')}")
        if answer[0] != 200 or group is None:
            return answer
        group.update({key: body[key] for key in ("launchTemplate", "updateConfig") if key in body})
        if "launchTemplate" in body:
            group.pop("diskSize", None)  # EKS says none then: it is the template's
        return eks._json_resp(200, {"nodegroup": group})

    @patched("ministack.services.eks", "_handle_request_sync")
    def change_a_node_group(original: Any, method: str, path: str, headers: Any, body: Any, query_params: Any) -> Any:
        if found := re.fullmatch(r"/clusters/([^/]+)/node-groups/([^/]+)/update-config", path):
            group = eks._nodegroups.get("/".join(found.groups()))
            if method == "POST" and group is not None:
                return eks._json_resp(200, {"update": _change(group, json.loads(body))})
        if re.fullmatch(r"/clusters/[^/]+/updates/[^/]+", path):
            done = {"id": path.rpartition("/")[2], "status": "Successful", "type": "ConfigUpdate"}
            return eks._json_resp(200, {"update": done})
        return original(method, path, headers, body, query_params)

    answered: dict[str, Any] = {}

    @patched("ministack.services.eks", "_handle_request_sync")
    def answer_a_repeated_request_as_before(
        original: Any, method: str, path: str, headers: Any, body: Any, query_params: Any
    ) -> Any:
        # A client whose connection broke sends its request again, with the same token; EKS does such a thing once.
        token = json.loads(body).get("clientRequestToken") if method == "POST" and body else None
        if token in answered:
            return answered[token]
        answer = original(method, path, headers, body, query_params)
        if token:
            answered[token] = answer
        return answer

    @patched("ministack.services.eks", "_create_addon")
    def make_the_roles_of_an_addon(original: Any, cluster: str, body: dict[str, Any]) -> Any:
        asked = body.get("podIdentityAssociations", [])
        answer = original(cluster, {**body, "podIdentityAssociations": []})
        addon = eks._addons.get(f"{cluster}/{body.get('addonName')}")
        if answer[0] != 200 or addon is None:
            return answer
        for one in asked:
            eks._create_pod_identity_association(cluster, {"namespace": "kube-system", **one})
            addon["podIdentityAssociations"].append(list(eks._pod_identity_associations.values())[-1]["associationArn"])
        return eks._json_resp(200, {"addon": addon})

    @patched("ministack.services.eks", "_delete_addon")
    def take_the_roles_of_an_addon(original: Any, cluster: str, name: str) -> Any:
        addon = eks._addons.get(f"{cluster}/{name}", {})
        for arn in addon.get("podIdentityAssociations", []):
            eks._delete_pod_identity_association(cluster, arn.rpartition("/")[2])
        return original(cluster, name)

    @patched("ministack.services.msk", "_camelize")
    def leave_tag_keys_alone(original: Any, value: Any) -> Any:
        camelized = original(value)
        return _with_tags_as_they_were(camelized, value, msk._to_camel)

    @patched("ministack.services.msk", "handle_request")
    async def route_what_is_missing(
        original: Any, method: str, path: str, headers: Any, body: Any, query_params: Any
    ) -> Any:
        path = unquote(path)
        if method == "GET" and path.startswith("/api/v2/clusters/"):
            return _describe_cluster_v2(msk, path.removeprefix("/api/v2/clusters/"))
        arn = path.removeprefix("/v1/configurations/")
        if method == "DELETE" and arn in msk._configurations:
            msk._configurations.pop(arn)
            msk._config_revisions.pop(arn, None)
            return msk._json({"Arn": arn, "State": "DELETING"})
        if method == "GET" and arn.startswith("arn:") and "/revisions" not in arn and arn not in msk._configurations:
            return msk._bad_request("Configuration ARN does not exist.")  # no 404: the provider waits for these words
        return await original(method, path, headers, body, query_params)

    @patched("ministack.services.elasticache", "_resolve_subnets")
    def take_subnets_of_the_other_emulator(original: Any, parameters: Any) -> Any:
        named = elasticache._extract_configs(parameters, "SubnetIds", ("SubnetIdentifier", "member"))
        zone = {"Name": "us-east-1a"}
        return [{"SubnetIdentifier": one, "SubnetAvailabilityZone": zone} for one in named], "vpc-of-the-other-emulator"

    @patched("ministack.services.elasticache", "_create_replication_group")
    def remember_the_key(original: Any, parameters: Any) -> Any:
        answer = original(parameters)
        name = elasticache._p(parameters, "ReplicationGroupId")
        if name in elasticache._replication_groups:
            elasticache._replication_groups[name]["KmsKeyId"] = elasticache._p(parameters, "KmsKeyId")
        return answer

    @patched("ministack.services.elasticache", "_rg_xml")
    def tell_the_key(original: Any, group: dict[str, Any]) -> str:
        key = f"<KmsKeyId>{group['KmsKeyId']}</KmsKeyId>" if group.get("KmsKeyId") else ""
        return key + str(original(group))

    @patched("ministack.services.elasticache", "_describe_cache_parameters")
    def tell_only_the_parameters_asked_for(original: Any, parameters: Any) -> Any:
        name, source = (elasticache._p(parameters, key) for key in ("CacheParameterGroupName", "Source"))
        every = elasticache._param_group_params.get(name, {})
        if not source:
            return original(parameters)
        try:
            asked = {key: value for key, value in every.items() if value.get("Source", "system") == source}
            elasticache._param_group_params[name] = asked
            return original(parameters)
        finally:
            elasticache._param_group_params[name] = every

    @patched("ministack.services.autoscaling", "_ACTION_MAP.DescribeTags")
    def tell_only_the_tags_asked_for(original: Any, parameters: Any) -> Any:
        every = dict(autoscaling._tags.items())
        groups = _filtered(autoscaling, parameters, "auto-scaling-group")
        keys = _filtered(autoscaling, parameters, "key")
        try:
            for name, tags in every.items():
                asked = [tag for tag in tags if (not groups or name in groups) and (not keys or tag["Key"] in keys)]
                autoscaling._tags[name] = asked
            return original(parameters)
        finally:
            for name, tags in every.items():
                autoscaling._tags[name] = tags


def _change(group: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Do to a node group what UpdateNodegroupConfig asks for."""
    for key in ("scalingConfig", "updateConfig"):
        group[key] = {**group.get(key, {}), **asked.get(key, {})}
    labels, taints = asked.get("labels", {}), asked.get("taints", {})
    gone = set(labels.get("removeLabels", []))
    group["labels"] = {key: value for key, value in group["labels"].items() if key not in gone}
    group["labels"] |= labels.get("addOrUpdateLabels", {})
    group["taints"] = [taint for taint in group["taints"] if taint not in taints.get("removeTaints", [])]
    group["taints"] += taints.get("addOrUpdateTaints", [])
    return {"id": str(uuid4()), "status": "Successful", "type": "ConfigUpdate"}


def _filtered(autoscaling: Any, parameters: Any, name: str) -> list[str]:
    """Values that a request's filter of this name allows; none when it has no such filter."""
    number = 1
    while told := autoscaling._p(parameters, f"Filters.member.{number}.Name"):
        if told == name:
            return list(autoscaling._parse_member_list(parameters, f"Filters.member.{number}.Values"))
        number += 1
    return []


def _describe_cluster_v2(msk: Any, arn: str) -> Any:
    if arn not in msk._clusters:
        return msk._not_found(f"Cluster {arn} not found.")
    told = dict(msk._clusters[arn])
    common = ("ClusterArn", "ClusterName", "CreationTime", "CurrentVersion", "State", "Tags")
    top = {key: told.pop(key) for key in common}
    return msk._json({"ClusterInfo": {**top, "ClusterType": "PROVISIONED", "Provisioned": told}})


def _with_tags_as_they_were(camelized: Any, original: Any, to_camel: Callable[[str], str]) -> Any:
    if not isinstance(original, dict):
        return camelized
    tags = {to_camel(key): original[key] for key in original if to_camel(key) == "tags"}
    return {**camelized, **tags}


def main() -> None:
    emulator = sys.argv.pop(1)
    if emulator == "moto":
        patch_moto()
        from moto.server import main as serve
    elif emulator == "ministack":
        patch_ministack()
        from ministack.app import main as serve
    else:
        sys.exit(f"emulator_patches.py: there is no emulator {emulator!r}; moto and ministack are")
    serve()


if __name__ == "__main__":
    main()
