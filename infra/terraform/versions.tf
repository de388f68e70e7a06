terraform {
  # 1.9 is the first whose validation of one variable may look at another and at what AWS offers.
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.80"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = merge(var.tags, { "perennial:installation" = var.name, "perennial:managed-by" = "terraform" })
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}
