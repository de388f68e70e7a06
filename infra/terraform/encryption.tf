# Keys of our own, one for each kind of thing, so that who may read the lake and who may read a log are two questions.
locals {
  # Within a key's policy the resource "*" is this key. This statement hands the key to the account's IAM policies, and keeps it
  # from being locked up for good.
  account_statement = {
    Sid       = "AccountDecidesByIam"
    Effect    = "Allow"
    Action    = "kms:*"
    Principal = { AWS = "arn:${local.partition}:iam::${local.account_id}:root" }
    Resource  = "*"
  }

  key_statements = {
    # Stores call KMS in the name of whoever made them, so IAM decides.
    data = []

    logs = [{
      Sid       = "CloudWatchLogs"
      Effect    = "Allow"
      Action    = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
      Principal = { Service = "logs.${var.region}.amazonaws.com" }
      Resource  = "*"
      Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = "arn:${local.partition}:logs:${var.region}:${local.account_id}:log-group:*" } }
    }]

    messages = [
      {
        Sid       = "AlarmsPublish"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:GenerateDataKey*"]
        Principal = { Service = "cloudwatch.amazonaws.com" }
        Resource  = "*"
        Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
      },
      {
        # Whose events they are is asked by the queue: its policy names the rules.
        Sid       = "EventsAreSent"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:GenerateDataKey*"]
        Principal = { Service = "events.amazonaws.com" }
        Resource  = "*"
      },
    ]

    # Disks are made by the role of EC2 Auto Scaling, which a new account does not have yet and a policy could not name. As the key
    # that AWS makes for disks does, this lets whoever may use EC2 in this account use it, through EC2 only.
    nodes = [{
      Sid       = "DisksThroughEc2"
      Effect    = "Allow"
      Action    = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:CreateGrant", "kms:DescribeKey"]
      Principal = { AWS = "*" }
      Resource  = "*"
      Condition = {
        StringEquals = { "kms:CallerAccount" = local.account_id, "kms:ViaService" = "ec2.${var.region}.amazonaws.com" }
      }
    }]

    cluster = []
  }

  key_purposes = {
    data     = "buckets, database, online store, event stream, images and secrets"
    logs     = "log groups"
    messages = "alerts and interruption notices"
    nodes    = "disks of the nodes"
    cluster  = "Kubernetes secrets"
  }
}

resource "aws_kms_key" "this" {
  #checkov:skip=CKV_AWS_33: of the key "nodes" the principal is held by kms:CallerAccount and kms:ViaService, as in the key that AWS makes for disks
  for_each = local.key_statements

  description             = "${var.name}: ${local.key_purposes[each.key]}"
  enable_key_rotation     = true
  deletion_window_in_days = 30

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat([local.account_statement], each.value)
  })
}

resource "aws_kms_alias" "this" {
  for_each = aws_kms_key.this

  name          = "alias/${var.name}-${each.key}"
  target_key_id = each.value.key_id
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338: size small keeps logs 30 days, which is enough to look into what went wrong; production keeps them a year
  for_each = {
    flow     = "/${var.name}/vpc-flow"
    stream   = "/${var.name}/event-stream"
    database = "/aws/rds/instance/${var.name}/postgresql"
    upgrade  = "/aws/rds/instance/${var.name}/upgrade"
    # EKS writes to this name and to no other.
    cluster = "/aws/eks/${var.name}/cluster"
  }

  name              = each.value
  kms_key_id        = aws_kms_key.this["logs"].arn
  retention_in_days = local.size.log_days
}
