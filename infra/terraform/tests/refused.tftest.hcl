# Values that are refused before anything is made. tests/infra/test_refusals.py also reads what is said of each.
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c"] }
  }
  mock_data "aws_ec2_instance_type_offerings" {
    defaults = {
      instance_types = ["g4dn.xlarge", "g5.xlarge", "t3.xlarge", "t3.xlarge", "t3.xlarge"]
      locations      = ["us-east-1a", "us-east-1a", "us-east-1a", "us-east-1b", "us-east-1c"]
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
  admin_principal_arns = ["arn:aws:iam::123456789012:role/ops"]
  alert_emails         = ["ops@example.com"]
  monthly_budget_usd   = 900
}

run "name_with_capitals" {
  command = plan
  variables {
    name = "Perennial_Dev"
  }
  expect_failures = [var.name]
}

run "name_too_long" {
  command = plan
  variables {
    name = "perennial-of-the-whole-company"
  }
  expect_failures = [var.name]
}

run "name_ending_in_a_hyphen" {
  command = plan
  variables {
    name = "perennial-"
  }
  expect_failures = [var.name]
}

run "region_that_is_a_zone" {
  command = plan
  variables {
    region = "us-east-1a"
  }
  expect_failures = [var.region]
}

run "region_in_china" {
  command = plan
  variables {
    region = "cn-north-1"
  }
  expect_failures = [var.region]
}

run "region_of_a_government" {
  command = plan
  variables {
    region = "us-gov-west-1"
  }
  expect_failures = [var.region]
}

run "size_nobody_knows" {
  command = plan
  variables {
    size = "huge"
  }
  expect_failures = [var.size]
}

run "no_zones" {
  command = plan
  variables {
    availability_zones = []
  }
  expect_failures = [var.availability_zones]
}

run "the_same_zone_thrice" {
  command = plan
  variables {
    availability_zones = ["us-east-1a", "us-east-1a", "us-east-1a"]
  }
  expect_failures = [var.availability_zones]
}

run "zones_of_another_region" {
  command = plan
  variables {
    availability_zones = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
  }
  expect_failures = [var.availability_zones]
}

run "a_local_zone" {
  command = plan
  variables {
    availability_zones = ["us-east-1a", "us-east-1b", "us-east-1-bos-1a"]
  }
  expect_failures = [var.availability_zones]
}

run "range_that_is_none" {
  command = plan
  variables {
    vpc_cidr = "10.42.0.0"
  }
  expect_failures = [var.vpc_cidr]
}

run "range_not_at_its_first_address" {
  command = plan
  variables {
    vpc_cidr = "10.42.0.9/16"
  }
  expect_failures = [var.vpc_cidr]
}

run "range_too_small" {
  command = plan
  variables {
    vpc_cidr = "10.42.0.0/24"
  }
  expect_failures = [var.vpc_cidr]
}

run "range_of_the_internet" {
  command = plan
  variables {
    vpc_cidr = "8.8.0.0/16"
  }
  expect_failures = [var.vpc_cidr]
}

run "range_ipv6" {
  command = plan
  variables {
    vpc_cidr = "fd00::/16"
  }
  expect_failures = [var.vpc_cidr]
}

run "api_open_to_all" {
  command = plan
  variables {
    api_access_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.api_access_cidrs]
}

run "api_address_without_length" {
  command = plan
  variables {
    api_access_cidrs = ["198.51.100.7"]
  }
  expect_failures = [var.api_access_cidrs]
}

run "api_range_not_at_its_first_address" {
  command = plan
  variables {
    api_access_cidrs = ["198.51.100.7/28"]
  }
  expect_failures = [var.api_access_cidrs]
}

run "api_private_range" {
  command = plan
  variables {
    api_access_cidrs = ["10.0.0.0/16"]
  }
  expect_failures = [var.api_access_cidrs]
}

run "no_administrator" {
  command = plan
  variables {
    admin_principal_arns = []
  }
  expect_failures = [var.admin_principal_arns]
}

run "administrator_is_a_session" {
  command = plan
  variables {
    admin_principal_arns = ["arn:aws:sts::123456789012:assumed-role/ops/ada"]
  }
  expect_failures = [var.admin_principal_arns]
}

run "administrator_is_everybody" {
  command = plan
  variables {
    admin_principal_arns = ["arn:aws:iam::123456789012:role/*"]
  }
  expect_failures = [var.admin_principal_arns]
}

# As `aws sts get-caller-identity` tells it, without the path that the role's ARN has.
run "administrator_of_identity_center_without_a_path" {
  command = plan
  variables {
    admin_principal_arns = ["arn:aws:iam::123456789012:role/AWSReservedSSO_Admin_0123456789abcdef"]
  }
  expect_failures = [var.admin_principal_arns]
}

run "nobody_to_alert" {
  command = plan
  variables {
    alert_emails = []
  }
  expect_failures = [var.alert_emails]
}

run "mail_address_that_is_none" {
  command = plan
  variables {
    alert_emails = ["ops at example.com"]
  }
  expect_failures = [var.alert_emails]
}

run "budget_of_nothing" {
  command = plan
  variables {
    monthly_budget_usd = 0
  }
  expect_failures = [var.monthly_budget_usd]
}

run "no_gpu_nodes_at_all" {
  command = plan
  variables {
    gpu_max_nodes = 0
  }
  expect_failures = [var.gpu_max_nodes]
}

run "half_a_gpu_node" {
  command = plan
  variables {
    gpu_max_nodes = 1.5
  }
  expect_failures = [var.gpu_max_nodes]
}

run "no_pipeline" {
  command = plan
  variables {
    pipelines = []
  }
  expect_failures = [var.pipelines]
}

run "pipeline_with_a_hyphen" {
  command = plan
  variables {
    pipelines = ["my-model"]
  }
  expect_failures = [var.pipelines]
}

run "old_kubernetes" {
  command = plan
  variables {
    kubernetes_version = "1.33"
  }
  expect_failures = [var.kubernetes_version]
}

run "tag_of_aws" {
  command = plan
  variables {
    tags = { "aws:owner" = "me" }
  }
  expect_failures = [var.tags]
}
