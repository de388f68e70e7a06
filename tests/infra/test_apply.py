"""infra/terraform is applied for real, to emulators: there is an account afterwards, and boto3 looks at it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import account
import pytest
from botocore.exceptions import ClientError
from emulators import ACCOUNT, REGION, Emulators, running
from terraform import Terraform

from perennial.infra_outputs import cluster_addresses, read_outputs

pytestmark = [pytest.mark.infra, pytest.mark.infra_apply]

SMALL = "-var-file=examples/small.tfvars"
APPLY = ("apply", "-no-color", "-auto-approve", SMALL)
PLAN = ("plan", "-no-color", "-detailed-exitcode", SMALL)
DESTROY = ("destroy", "-no-color", "-auto-approve", SMALL)
UNPROTECTED = ("-var", "deletion_protection=false", "-var", "gpu_max_nodes=3")
NOTHING_TO_DO = 0
NODE_GROUPS = (
    "aws_eks_node_group.system",
    'aws_eks_node_group.gpu["gpu-spot"]',
    'aws_eks_node_group.gpu["gpu-on-demand"]',
)
BUCKETS = f"perennial-{ACCOUNT}-{REGION}"
# By moto's copy of AWS's offers, its first three zones have three, four and two of the four types, and one in common.
ELSEWHERE = "eu-north-1"
KEY_ACTIONS = '["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey", "kms:CreateGrant"]'


class Stopwatch:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.began = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        self.tell(f"{what}: {now - self.began:.0f} s")
        self.began = now


@pytest.fixture(scope="module")
def installation(
    request: pytest.FixtureRequest,
    initialized: Terraform,
    running_emulators: Emulators,
    tmp_path_factory: pytest.TempPathFactory,
    figures: Callable[[str], None],
) -> Terraform:
    made = Terraform(tmp_path_factory.mktemp("installation"), running_emulators.endpoints, like=initialized)
    # An apply waits most of its time: what others will ask is begun meanwhile.
    wanted = {fixture for item in request.session.items for fixture in getattr(item, "fixturenames", ())}
    for other in wanted & {"careless", "asked"}:
        request.getfixturevalue(other)
    watch = Stopwatch(figures)
    (made.folder / "applied.log").write_text(made.must(*APPLY))
    watch.lap(f"apply: {len(made.resources())} resources")
    return made


@pytest.fixture(scope="module")
def careless(
    initialized: Terraform, running_emulators: Emulators, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Emulators]]:
    """An account beside the one that other tests look at, where a change that takes much away is being applied, elsewhere."""
    folder = tmp_path_factory.mktemp("careless")
    (folder / "emulators").mkdir()
    with running(folder / "emulators") as beside, ThreadPoolExecutor(1) as one:
        yield one.submit(apply_carelessly, Terraform(folder, beside.endpoints, like=initialized), beside)


def apply_carelessly(made: Terraform, where: Emulators) -> Emulators:
    changes = [
        (
            "storage.tf",
            'Sid       = "TlsOnly"\n        Effect    = "Deny"',
            'Sid       = "TlsOnly"\n        Effect    = "Allow"',
        ),
        ("nodes.tf", 'http_tokens                 = "required"', 'http_tokens                 = "optional"'),
        ("gpu_spot.tf", "taints = [local.gpu_taint, local.spot_taint]", "taints = [local.gpu_taint]"),
        ("gpu_spot.tf", 'capacity_type = "SPOT"', 'capacity_type = "ON_DEMAND"'),
        ("cluster.tf", 'Resource = aws_kms_key.this["cluster"].arn', 'Resource = "*"'),
        ("cluster.tf", KEY_ACTIONS, '["secretsmanager:GetSecretValue"]'),
    ]
    for file, before, after in changes:
        text = (made.folder / file).read_text()
        assert before in text, f"{file} has no {before!r} any more; take away something else"
        (made.folder / file).write_text(text.replace(before, after))
    # The roles of workloads know every store, and would bring them all.
    these = ("aws_s3_bucket_policy.this", "aws_eks_node_group.gpu", "aws_iam_role_policy.cluster_key")
    made.must(*APPLY, "-var", "name=careless", "-var", f"region={ELSEWHERE}", *(f"-target={one}" for one in these))
    return where


def test_a_second_plan_has_nothing_to_do(installation: Terraform, figures: Callable[[str], None]) -> None:
    watch = Stopwatch(figures)
    result = installation.run(*PLAN)
    watch.lap("plan again: no changes")
    assert result.status == NOTHING_TO_DO, result.output


def test_the_outputs_name_what_is_there(installation: Terraform, running_emulators: Emulators) -> None:
    told = installation.outputs()
    addresses = cluster_addresses(read_outputs(installation.must("output", "-json"), "the outputs"))
    assert addresses["PERENNIAL_KAFKA_BOOTSTRAP_SERVERS"] == told["kafka_bootstrap_servers"]
    assert addresses["WORKER_REPOSITORY"] == told["image_repositories"]["worker"]
    assert told["kafka_bootstrap_servers"].endswith(":9098")
    assert told["lake_catalog_uri"] == f"glue://{REGION}"
    assert told["lake_warehouse"] == f"s3://{told['lake_bucket']}/lake"
    clients = {
        name: running_emulators.client(name) for name in ("s3", "rds", "eks", "secretsmanager", "sqs", "sns", "glue")
    }
    clients["s3"].head_bucket(Bucket=told["lake_bucket"])
    clients["s3"].head_bucket(Bucket=told["artifacts_bucket"])
    database = clients["rds"].describe_db_instances(DBInstanceIdentifier="perennial")["DBInstances"][0]
    assert (told["database_host"], told["database_port"]) == (
        database["Endpoint"]["Address"],
        database["Endpoint"]["Port"],
    )
    assert clients["eks"].describe_cluster(name=told["cluster_name"])["cluster"]["version"] == told["cluster_version"]
    login = json.loads(clients["secretsmanager"].get_secret_value(SecretId=told["database_secret_arn"])["SecretString"])
    assert login["username"] == "perennial"
    assert login["password"]
    online = json.loads(
        clients["secretsmanager"].get_secret_value(SecretId=told["online_store_secret_arn"])["SecretString"]
    )
    assert (online["host"], online["port"]) == (told["online_store_host"], told["online_store_port"])
    assert len(online["password"]) == 64
    assert online["password"] not in (installation.folder / "applied.log").read_text()
    groups = running_emulators.client("ec2").describe_security_groups(
        GroupIds=[told["store_clients_security_group_id"]], Filters=[{"Name": "vpc-id", "Values": [told["vpc_id"]]}]
    )["SecurityGroups"]
    opened = running_emulators.client("ec2").describe_security_groups()["SecurityGroups"]
    let_in = {
        pair["GroupId"] for group in opened for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    }
    assert [group["GroupId"] for group in groups] == [told["store_clients_security_group_id"]]
    assert told["store_clients_security_group_id"] in let_in
    cluster = clients["eks"].describe_cluster(name=told["cluster_name"])["cluster"]["resourcesVpcConfig"]
    assert told["cluster_security_group_id"] == cluster["clusterSecurityGroupId"]
    assert sorted(told["private_subnet_ids"]) == sorted(cluster["subnetIds"])
    clients["sqs"].get_queue_attributes(QueueUrl=told["interruption_queue_url"])
    clients["sns"].get_topic_attributes(TopicArn=told["alert_topic_arn"])
    assert [clients["glue"].get_database(Name=name)["Database"]["Name"] for name in told["lake_databases"]] == [
        "flights"
    ]


def test_no_output_is_a_password_and_the_state_has_none_of_the_database(
    installation: Terraform, running_emulators: Emulators
) -> None:
    told = installation.outputs()
    read = running_emulators.client("secretsmanager").get_secret_value
    passwords = [
        json.loads(read(SecretId=told[name])["SecretString"])["password"]
        for name in ("database_secret_arn", "online_store_secret_arn")
    ]
    assert not [password for password in passwords if password in json.dumps(told)]
    assert passwords[0] not in (installation.folder / "terraform.tfstate").read_text()


def test_buckets_take_tls_only_keep_versions_and_cannot_be_public(
    installation: Terraform, running_emulators: Emulators
) -> None:
    s3 = running_emulators.client("s3")
    assert account.buckets_that_take_plain_http(s3, BUCKETS) == []
    assert account.buckets_that_are_open_or_forget(s3, BUCKETS) == []


def test_gpu_groups_are_spot_first_tainted_and_at_zero(installation: Terraform, running_emulators: Emulators) -> None:
    eks, autoscaling = running_emulators.client("eks"), running_emulators.client("autoscaling")
    assert account.gpu_groups_that_surprise(eks, "perennial") == []
    assert account.groups_the_autoscaler_cannot_picture(eks, autoscaling, "perennial") == []


def test_nodes_keep_their_credentials_and_encrypt_their_disks(
    installation: Terraform, running_emulators: Emulators
) -> None:
    eks, ec2 = running_emulators.client("eks"), running_emulators.client("ec2")
    assert account.nodes_that_tell_their_credentials(ec2, eks, "perennial") == []


def test_only_the_named_administrators_have_access_and_only_from_the_named_addresses(
    installation: Terraform, running_emulators: Emulators
) -> None:
    eks = running_emulators.client("eks")
    admin = "arn:aws:iam::123456789012:role/ops"
    assert eks.list_access_entries(clusterName="perennial")["accessEntries"] == [admin]
    cluster = eks.describe_cluster(name="perennial")["cluster"]
    assert cluster["accessConfig"]["authenticationMode"] == "API"
    assert cluster["resourcesVpcConfig"]["endpointPrivateAccess"] is True
    assert cluster["resourcesVpcConfig"]["publicAccessCidrs"] == ["198.51.100.7/32"]
    assert cluster["encryptionConfig"][0]["resources"] == ["secrets"]
    assert {kind for one in cluster["logging"]["clusterLogging"] if one["enabled"] for kind in one["types"]} == {
        "api",
        "audit",
        "authenticator",
        "controllerManager",
        "scheduler",
    }


def test_each_workload_has_a_role_of_its_own_that_may_nothing_about_everything(
    installation: Terraform, running_emulators: Emulators
) -> None:
    eks = running_emulators.client("eks")
    assert account.roles_that_may_too_much(running_emulators.client("iam"), "perennial") == []
    found = {}
    for summary in eks.list_pod_identity_associations(clusterName="perennial")["associations"]:
        told = eks.describe_pod_identity_association(clusterName="perennial", associationId=summary["associationId"])[
            "association"
        ]
        found[told["serviceAccount"]] = (told["namespace"], told["roleArn"].rpartition("/")[2])
    assert found == {
        "worker": ("perennial", "perennial-worker"),
        "service": ("perennial", "perennial-service"),
        "mlflow": ("perennial", "perennial-mlflow"),
        "accounts": ("perennial", "perennial-accounts"),
        "alertmanager": ("perennial", "perennial-alertmanager"),
        "cluster-autoscaler": ("kube-system", "perennial-cluster-autoscaler"),
        "aws-node": ("kube-system", "perennial-vpc-cni"),
        "ebs-csi-controller-sa": ("kube-system", "perennial-aws-ebs-csi-driver"),
    }


def test_each_workload_may_do_what_it_does_and_not_what_others_do(
    installation: Terraform, running_emulators: Emulators
) -> None:
    told, iam = installation.outputs(), running_emulators.client("iam")
    cluster = running_emulators.client("kafka").list_clusters()["ClusterInfoList"][0]["ClusterArn"]
    topic = cluster.replace(":cluster/", ":topic/") + "/flights.arrived.v1"
    group = cluster.replace(":cluster/", ":group/") + "/perennial-flights"
    lake, artifacts = f"arn:aws:s3:::{told['lake_bucket']}", f"arn:aws:s3:::{told['artifacts_bucket']}"
    glue = f"arn:aws:glue:{REGION}:{ACCOUNT}"
    key = running_emulators.client("kms").describe_key(KeyId="alias/perennial-data")["KeyMetadata"]["Arn"]
    messages = running_emulators.client("kms").describe_key(KeyId="alias/perennial-messages")["KeyMetadata"]["Arn"]
    read, write = ["s3:GetObject"], ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    tables = ["glue:GetTable", "glue:GetTables", "glue:CreateTable", "glue:UpdateTable"]
    use_key = {key: ["kms:Decrypt", "kms:GenerateDataKey"]}
    needed = {
        # Events into the lake, positions told to the broker; models and progress of fits into the other bucket.
        "perennial-worker": {
            cluster: ["kafka-cluster:Connect", "kafka-cluster:WriteDataIdempotently"],
            topic: ["kafka-cluster:DescribeTopic", "kafka-cluster:ReadData", "kafka-cluster:WriteData"],
            group: ["kafka-cluster:DescribeGroup", "kafka-cluster:AlterGroup"],
            lake: ["s3:ListBucket"],
            f"{lake}/lake/flights.db/events/data/1.parquet": write,
            f"{glue}:catalog": [*tables, "glue:CreateDatabase"],
            f"{glue}:database/flights": [*tables, "glue:CreateDatabase"],
            f"{glue}:table/flights/events": tables,
            artifacts: ["s3:ListBucket"],
            f"{artifacts}/mlflow/1/model.onnx": write,
            f"{artifacts}/checkpoints/flights/1": write,
            told["alert_topic_arn"]: ["sns:Publish"],
            **use_key,
        },
        "perennial-service": {artifacts: ["s3:ListBucket"], f"{artifacts}/mlflow/1/model.onnx": read, **use_key},
        "perennial-mlflow": {artifacts: ["s3:ListBucket"], f"{artifacts}/mlflow/1/model.onnx": write, **use_key},
        "perennial-alertmanager": {
            told["alert_topic_arn"]: ["sns:Publish"],
            messages: ["kms:Decrypt", "kms:GenerateDataKey"],
        },
        "perennial-cluster-autoscaler": {
            "*": ["autoscaling:DescribeAutoScalingGroups", "ec2:DescribeLaunchTemplateVersions"],
            f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:1:autoScalingGroupName/eks-perennial-gpu-spot-1": [
                "autoscaling:SetDesiredCapacity",
                "autoscaling:TerminateInstanceInAutoScalingGroup",
            ],
            f"arn:aws:eks:{REGION}:{ACCOUNT}:nodegroup/perennial/perennial-gpu-spot/1": ["eks:DescribeNodegroup"],
        },
    }
    assert [lack for role, needs in needed.items() for lack in account.what_a_role_lacks(iam, role, needs)] == []
    others = {
        "perennial-worker": {f"{glue}:database/billing": ["glue:GetTable"], lake: ["s3:DeleteBucket"]},
        "perennial-service": {f"{artifacts}/mlflow/1/model.onnx": ["s3:PutObject"], f"{lake}/lake/x": ["s3:GetObject"]},
        "perennial-mlflow": {topic: ["kafka-cluster:ReadData"], f"{lake}/lake/x": ["s3:GetObject"]},
        "perennial-alertmanager": {lake: ["s3:ListBucket"], key: ["kms:Decrypt"]},
        "perennial-cluster-autoscaler": {told["database_secret_arn"]: ["secretsmanager:GetSecretValue"]},
    }
    for role, needs in others.items():
        assert len(account.what_a_role_lacks(iam, role, needs)) == sum(map(len, needs.values())), role


def test_stores_are_encrypted_private_and_ask_who_comes(installation: Terraform, running_emulators: Emulators) -> None:
    database = running_emulators.client("rds").describe_db_instances()["DBInstances"][0]
    assert database["StorageEncrypted"]
    assert database["DeletionProtection"]
    assert not database["PubliclyAccessible"]
    assert database["BackupRetentionPeriod"] == 7
    assert database["MasterUserSecret"]["SecretArn"]
    online = running_emulators.client("elasticache").describe_replication_groups()["ReplicationGroups"][0]
    assert (online["AtRestEncryptionEnabled"], online["TransitEncryptionEnabled"], online["AuthTokenEnabled"]) == (
        True,
    ) * 3
    kafka = running_emulators.client("kafka")
    stream = kafka.describe_cluster_v2(ClusterArn=kafka.list_clusters()["ClusterInfoList"][0]["ClusterArn"])[
        "ClusterInfo"
    ]
    assert stream["Provisioned"]["ClientAuthentication"]["Sasl"]["Iam"]["Enabled"]
    assert not stream["Provisioned"]["ClientAuthentication"]["Unauthenticated"]["Enabled"]
    assert stream["Provisioned"]["EncryptionInfo"]["EncryptionInTransit"] == {"ClientBroker": "TLS", "InCluster": True}
    groups = running_emulators.client("ec2").describe_security_groups()["SecurityGroups"]
    opened = {
        group["GroupName"]: [
            (one["FromPort"], one["IpRanges"], len(one["UserIdGroupPairs"])) for one in group["IpPermissions"]
        ]
        for group in groups
        if group["GroupName"].startswith("perennial-")
    }
    assert opened == {
        "perennial-node": [],
        "perennial-database": [(5432, [], 1)],
        "perennial-online-store": [(6379, [], 1)],
        "perennial-stream": [(9098, [], 1)],
    }


def test_interruptions_reach_the_queue_and_people_hear_of_alarms_and_the_bill(
    installation: Terraform, running_emulators: Emulators
) -> None:
    told = installation.outputs()
    events = running_emulators.client("events")
    queue = f"arn:aws:sqs:{REGION}:{ACCOUNT}:perennial-interruptions"
    kinds = set()
    for rule in events.list_rules()["Rules"]:
        assert [target["Arn"] for target in events.list_targets_by_rule(Rule=rule["Name"])["Targets"]] == [queue]
        kinds |= set(json.loads(rule["EventPattern"])["detail-type"])
    assert kinds == {
        "EC2 Spot Instance Interruption Warning",
        "EC2 Instance Rebalance Recommendation",
        "AWS Health Event",
    }
    alarms = running_emulators.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert len(alarms) == 8
    assert {action for alarm in alarms for action in alarm["AlarmActions"]} == {told["alert_topic_arn"]}
    people = running_emulators.client("sns").list_subscriptions_by_topic(TopicArn=told["alert_topic_arn"])[
        "Subscriptions"
    ]
    assert [(one["Protocol"], one["Endpoint"]) for one in people] == [("email", "ops@example.com")]
    budgets = running_emulators.client("budgets")
    limit = budgets.describe_budget(AccountId=ACCOUNT, BudgetName="perennial-monthly")["Budget"]["BudgetLimit"]
    assert (float(limit["Amount"]), limit["Unit"]) == (1300, "USD")
    notices = budgets.describe_notifications_for_budget(AccountId=ACCOUNT, BudgetName="perennial-monthly")[
        "Notifications"
    ]
    assert sorted((one["NotificationType"], one["Threshold"]) for one in notices) == [
        ("ACTUAL", 80),
        ("ACTUAL", 100),
        ("FORECASTED", 100),
    ]


def test_checks_of_the_account_find_what_a_careless_change_takes_away(careless: Future[Emulators]) -> None:
    client = partial(careless.result().client, region=ELSEWHERE)
    takes_http = account.buckets_that_take_plain_http(client("s3"), f"careless-{ACCOUNT}-{ELSEWHERE}")
    assert len(takes_http) == 3, takes_http
    assert account.gpu_groups_that_surprise(client("eks"), "careless") == [
        "careless-gpu-spot is ON_DEMAND",
        "careless-gpu-spot is kept free by [{'key': 'nvidia.com/gpu', 'value': 'present', 'effect': 'NO_SCHEDULE'}]",
    ]
    assert len(account.groups_the_autoscaler_cannot_picture(client("eks"), client("autoscaling"), "careless")) > 0
    assert len(account.nodes_that_tell_their_credentials(client("ec2"), client("eks"), "careless")) == 2
    assert account.roles_that_may_too_much(client("iam"), "careless") == [
        "careless-cluster may ['secretsmanager:GetSecretValue'] on everything"
    ]


def test_gpu_groups_are_of_zones_that_have_each_of_their_types(
    careless: Future[Emulators], installation: Terraform, running_emulators: Emulators
) -> None:
    for emulators, region, cluster in (
        (running_emulators, REGION, "perennial"),
        (careless.result(), ELSEWHERE, "careless"),
    ):
        client = partial(emulators.client, region=region)
        assert account.gpu_groups_that_eks_refuses(client("eks"), client("ec2"), cluster) == []


def test_production_asks_for_no_more_nodes_at_least_than_there_are(installation: Terraform) -> None:
    # EKS says "Minimum capacity can't be greater than desired size", and how many are desired is the autoscaler's.
    these = ("-target=aws_eks_node_group.system", "-refresh=false", "-out=production")
    installation.must("plan", "-no-color", SMALL, "-var", "size=production", *these)
    planned = json.loads(installation.must("show", "-json", "production"))["resource_changes"]
    group = next(one["change"] for one in planned if one["address"] == "aws_eks_node_group.system")
    assert group["actions"] == ["create", "delete"]  # what runs on the old nodes has new ones to go to
    assert group["after"]["instance_types"] == ["m6i.2xlarge"]
    size = group["after"]["scaling_config"][0]
    assert size["min_size"] <= size["desired_size"] <= size["max_size"]


def test_a_pipeline_that_is_no_longer_listed_keeps_its_tables_while_protected(
    installation: Terraform, running_emulators: Emulators
) -> None:
    before = installation.resources()
    result = installation.run(*APPLY, "-refresh=false", "-var", 'pipelines=["weather"]')
    assert result.status == 1
    assert "flights is missing in pipelines: name it again" in " ".join(result.output.split())
    assert running_emulators.client("glue").get_database(Name="flights")["Database"]["Name"] == "flights"
    installation.must(*APPLY, "-refresh=false")
    assert installation.resources() == before


@pytest.mark.parametrize("change", ["vpc_cidr=10.43.0.0/16", "name=other"])
def test_what_an_installation_is_cannot_be_changed(installation: Terraform, change: str) -> None:
    result = installation.run(*PLAN, "-refresh=false", "-var", change)
    assert result.status == 1
    said = " ".join(result.output.replace("│", " ").split())
    assert f"This state is of perennial in us-east-1 with 10.42.0.0/16 in the account {ACCOUNT}, not of" in said
    assert change.partition("=")[2] in said
    assert "make another installation in a folder of its own" in said


def test_credentials_of_another_account_are_refused_before_everything_is_made_there(
    installation: Terraform, running_emulators: Emulators
) -> None:
    ministack = running_emulators.endpoints["AWS_ENDPOINT_URL_EKS"]  # takes a key of twelve digits for the account
    other = {"AWS_ACCESS_KEY_ID": "210987654321", "AWS_ENDPOINT_URL_STS": ministack}
    result = installation.run(*PLAN, "-refresh=false", environment=other)
    assert result.status == 1
    said = " ".join(result.output.replace("│", " ").split())
    assert (
        f"in the account {ACCOUNT}, not of perennial in us-east-1 with 10.42.0.0/16 in the account 210987654321" in said
    )


def test_a_destroy_while_protected_is_refused_and_loses_nothing(
    installation: Terraform, figures: Callable[[str], None]
) -> None:
    before, outputs = installation.resources(), installation.outputs()
    watch = Stopwatch(figures)
    result = installation.run(*DESTROY)
    watch.lap("destroy while protected: refused")
    assert result.status == 1
    assert "deletion_protection is on: set it to false" in " ".join(result.output.split())
    assert installation.resources() == before
    # Nor does it help to say so on the command line of the destroy alone.
    assert installation.run(*DESTROY, *UNPROTECTED, "-refresh=false").status == 1
    assert installation.resources() == before
    # Terraform forgets the outputs when a destroy begins; an apply, which has nothing else to do, tells them again.
    assert "Resources: 0 added, 0 changed, 0 destroyed." in installation.must(*APPLY, "-refresh=false")
    assert installation.outputs() == outputs


def test_a_changed_variable_changes_that_and_then_a_destroy_leaves_nothing_but_a_snapshot(
    installation: Terraform, running_emulators: Emulators, figures: Callable[[str], None]
) -> None:
    watch = Stopwatch(figures)
    said = installation.must(*APPLY, *UNPROTECTED)
    watch.lap("apply of two changed variables: " + next(line for line in said.splitlines() if line.startswith("Plan:")))
    assert "0 added" in said
    assert "0 destroyed" in said
    eks = running_emulators.client("eks")
    group = eks.describe_nodegroup(clusterName="perennial", nodegroupName="perennial-gpu-spot")["nodegroup"]
    assert group["scalingConfig"] == {"minSize": 0, "desiredSize": 0, "maxSize": 3}
    result = installation.run(*PLAN, *UNPROTECTED)
    assert result.status == NOTHING_TO_DO, result.output

    count = len(installation.resources())
    watch = Stopwatch(figures)
    said = installation.must(*DESTROY, *UNPROTECTED)
    watch.lap(f"destroy: {count} resources")
    # Nodes that go need the way out and the network add-on's rights, or they leave interfaces behind that hold the subnets.
    gone = max(said.rindex(f"{group}: Destruction complete") for group in NODE_GROUPS)
    for needed in ("aws_route.internet", "aws_route.nat[0]", 'aws_iam_role_policy_attachment.addon["vpc-cni"]'):
        assert said.index(f"{needed}: Destroying...") > gone, needed
    assert installation.resources() == []
    client = running_emulators.client
    assert not [bucket for bucket in client("s3").list_buckets()["Buckets"] if bucket["Name"].startswith(BUCKETS)]
    assert client("rds").describe_db_instances()["DBInstances"] == []
    assert client("elasticache").describe_replication_groups()["ReplicationGroups"] == []
    assert client("kafka").list_clusters()["ClusterInfoList"] == []
    with pytest.raises(ClientError, match="No cluster found"):
        eks.describe_cluster(name="perennial")
    snapshots = client("rds").describe_db_snapshots(SnapshotType="manual")["DBSnapshots"]
    assert [one["DBSnapshotIdentifier"].startswith("perennial-final-vpc-") for one in snapshots] == [True]
