# What is planned, without an account: the provider's answers are made up. Run with `terraform test`.
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"] }
  }
  mock_data "aws_ec2_instance_type_offerings" {
    # An offer is of one place in both lists. Of the zones a, b and c, b has too few GPU types of size small, and g6e is in c alone.
    defaults = {
      instance_types = [
        "g6.xlarge", "g6.xlarge", "g4dn.xlarge", "g4dn.xlarge", "g4dn.xlarge", "g5.xlarge", "g5.xlarge", "g6e.xlarge", "g6e.xlarge",
        "g6.2xlarge", "g5.2xlarge", "t3.xlarge", "t3.xlarge", "t3.xlarge", "m6i.2xlarge", "m6i.2xlarge", "m6i.2xlarge",
      ]
      locations = [
        "us-east-1a", "us-east-1c", "us-east-1b", "us-east-1a", "us-east-1c", "us-east-1c", "us-east-1a", "us-east-1c", "us-east-1d",
        "us-east-1b", "us-east-1b", "us-east-1a", "us-east-1b", "us-east-1c", "us-east-1a", "us-east-1b", "us-east-1c",
      ]
    }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  region               = "us-east-1"
  api_access_cidrs     = ["198.51.100.7/32"]
  admin_principal_arns = ["arn:aws:iam::123456789012:role/aws-reserved/sso.amazonaws.com/AWSReservedSSO_Admin_0123456789abcdef"]
  alert_emails         = ["ops@example.com"]
  monthly_budget_usd   = 900
}

# One plan for many questions: a plan takes most of a second.
run "small_costs_little_until_it_is_needed_and_loses_nothing" {
  command = plan

  assert {
    condition     = aws_eks_node_group.gpu["gpu-spot"].capacity_type == "SPOT" && aws_eks_node_group.gpu["gpu-on-demand"].capacity_type == "ON_DEMAND"
    error_message = "a group is not of the capacity that its name says"
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : group.scaling_config[0].min_size == 0 && group.scaling_config[0].desired_size == 0])
    error_message = "a GPU group does not go down to zero"
  }
  assert {
    condition     = toset([for taint in aws_eks_node_group.gpu["gpu-spot"].taint : "${taint.key}=${taint.value}:${taint.effect}"]) == toset(["nvidia.com/gpu=present:NO_SCHEDULE", "perennial/capacity=spot:NO_SCHEDULE"])
    error_message = "the spot group lets in pods that did not say they bear an interruption"
  }
  assert {
    condition     = toset([for taint in aws_eks_node_group.gpu["gpu-on-demand"].taint : taint.key]) == toset(["nvidia.com/gpu"])
    error_message = "the group on demand is kept free by something else than its GPU"
  }
  assert {
    condition     = aws_autoscaling_group_tag.gpu["gpu-spot/taint/perennial/capacity"].tag[0].value == "spot:NoSchedule" && aws_autoscaling_group_tag.gpu["gpu-on-demand/resources/nvidia.com/gpu"].tag[0].value == "1"
    error_message = "the autoscaler cannot know what a node of an empty group would have"
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.gpu : contains(keys(group.labels), "k8s.amazonaws.com/accelerator")])
    error_message = "the autoscaler would start a second node while the first one's GPU is not announced yet"
  }
  assert {
    # In the size's order, the smallest first, whatever order AWS tells them in; without g6e, which a does not have.
    condition     = tolist(aws_eks_node_group.gpu["gpu-spot"].instance_types) == tolist(["g4dn.xlarge", "g5.xlarge", "g6.xlarge"])
    error_message = "the types are ${jsonencode(aws_eks_node_group.gpu["gpu-spot"].instance_types)}"
  }
  assert {
    condition     = [for zone in local.gpu_choice.zones : aws_subnet.private[zone].availability_zone] == ["us-east-1a", "us-east-1c"]
    error_message = "GPU nodes are asked for in ${jsonencode([for zone in local.gpu_choice.zones : aws_subnet.private[zone].availability_zone])}"
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "a pod could ask a node for its credentials"
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.block_device_mappings[0].ebs[0].encrypted == "true"])
    error_message = "a node's disk is not encrypted"
  }
  assert {
    condition     = aws_db_instance.this.deletion_protection && !aws_db_instance.this.skip_final_snapshot && aws_db_instance.this.storage_encrypted && !aws_db_instance.this.publicly_accessible
    error_message = "the database can be lost or read"
  }
  assert {
    condition     = alltrue([for bucket in aws_s3_bucket.this : !bucket.force_destroy]) && alltrue([for repository in aws_ecr_repository.this : !repository.force_delete])
    error_message = "a destroy would empty a bucket or a repository"
  }
  assert {
    condition     = aws_msk_cluster.this.client_authentication[0].sasl[0].iam && !aws_msk_cluster.this.client_authentication[0].unauthenticated && aws_msk_cluster.this.encryption_info[0].encryption_in_transit[0].client_broker == "TLS"
    error_message = "the event stream takes whoever comes"
  }
  assert {
    # MSK's documentation lists kafka.t3.small; for a new KRaft cluster CreateCluster answers "Unsupported InstanceType".
    condition     = can(regex("^kafka\\.(m5|m7g)\\.", aws_msk_cluster.this.broker_node_group_info[0].instance_type)) && endswith(aws_msk_cluster.this.kafka_version, ".kraft")
    error_message = "MSK makes no cluster of ${aws_msk_cluster.this.broker_node_group_info[0].instance_type}"
  }
  assert {
    condition     = aws_elasticache_replication_group.this.transit_encryption_enabled == true && aws_elasticache_replication_group.this.at_rest_encryption_enabled == "true"
    error_message = "the online store is not encrypted"
  }
  assert {
    condition     = alltrue([for key in aws_kms_key.this : key.enable_key_rotation])
    error_message = "a key does not rotate"
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && !aws_db_instance.this.multi_az && aws_elasticache_replication_group.this.num_cache_clusters == 1
    error_message = "small pays for a standby"
  }
}

run "a_region_with_one_gpu_type_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type_offerings.gpu
    values = { instance_types = ["g4dn.xlarge"], locations = ["us-east-1a"] }
  }

  expect_failures = [aws_eks_node_group.gpu]
}

run "a_region_without_two_gpu_types_in_one_zone_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type_offerings.gpu
    values = { instance_types = ["g4dn.xlarge", "g5.xlarge"], locations = ["us-east-1a", "us-east-1b"] }
  }

  expect_failures = [aws_eks_node_group.gpu]
}

run "a_region_without_the_system_nodes_in_a_zone_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type_offerings.system
    values = { instance_types = ["t3.xlarge", "t3.xlarge"], locations = ["us-east-1a", "us-east-1c"] }
  }

  expect_failures = [aws_eks_node_group.system]
}

run "a_region_with_two_zones_is_refused" {
  command = plan

  override_data {
    target = data.aws_availability_zones.available
    values = { names = ["us-west-1a", "us-west-1c"] }
  }

  # The subnets have no third zone to be in.
  expect_failures = [aws_vpc.this]
}

run "production_stands_when_a_zone_falls" {
  command = plan

  variables {
    size          = "production"
    gpu_max_nodes = 12
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3 && aws_db_instance.this.multi_az && aws_elasticache_replication_group.this.automatic_failover_enabled && aws_elasticache_replication_group.this.multi_az_enabled
    error_message = "production has a single point that can fall"
  }
  assert {
    condition     = aws_eks_node_group.gpu["gpu-spot"].scaling_config[0].max_size == 12
    error_message = "gpu_max_nodes is not what was asked for"
  }
  assert {
    condition     = alltrue([for type in aws_eks_node_group.gpu["gpu-spot"].instance_types : endswith(type, ".2xlarge")])
    error_message = "GPU types of different sizes are mixed, and the autoscaler would picture the wrong node"
  }
  assert {
    # Of the group there is no such metric: an alarm on it would be silent for ever.
    condition     = toset([for alarm in aws_cloudwatch_metric_alarm.this : alarm.dimensions["CacheClusterId"] if alarm.namespace == "AWS/ElastiCache"]) == toset(["perennial-001", "perennial-002", "perennial-003"])
    error_message = "nobody hears of it when a node of the online store is full"
  }
}

run "without_addresses_the_kubernetes_api_stays_inside" {
  command = plan

  variables {
    api_access_cidrs = []
  }

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "the API answers the internet"
  }
}

run "subnets_share_the_range_without_overlapping" {
  command = plan

  variables {
    vpc_cidr = "10.8.0.0/18"
  }

  assert {
    condition     = tolist([for subnet in concat(aws_subnet.private, aws_subnet.public) : subnet.cidr_block]) == tolist(["10.8.0.0/20", "10.8.16.0/20", "10.8.32.0/20", "10.8.48.0/24", "10.8.49.0/24", "10.8.50.0/24"])
    error_message = "the subnets are ${jsonencode([for subnet in concat(aws_subnet.private, aws_subnet.public) : subnet.cidr_block])}"
  }
}
