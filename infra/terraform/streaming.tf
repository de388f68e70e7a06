# Kafka. Clients prove who they are by IAM (kafka-python: sasl_mechanism AWS_MSK_IAM), so there is no password to keep.
locals {
  # KRaft, since a cluster with ZooKeeper can neither become one without nor go on to Kafka 4.
  kafka_version = "3.9.x.kraft"
}

resource "aws_msk_cluster" "this" {
  cluster_name           = var.name
  kafka_version          = local.kafka_version
  number_of_broker_nodes = 3
  enhanced_monitoring    = "PER_BROKER"

  broker_node_group_info {
    instance_type   = local.size.broker_class
    client_subnets  = aws_subnet.private[*].id
    security_groups = [aws_security_group.store["stream"].id]

    storage_info {
      ebs_storage_info {
        volume_size = local.size.broker_gb
      }
    }
  }

  client_authentication {
    unauthenticated = false
    sasl {
      iam = true
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = aws_kms_key.this["data"].arn
    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.this["stream"].name
      }
    }
  }
}

resource "aws_msk_configuration" "this" {
  name           = "${var.name}-${replace(local.kafka_version, ".", "-")}" # the next version's is made beside it
  kafka_versions = [local.kafka_version]

  # An event counts when two of three zones have it. Topics are made by who may write to them, which IAM says.
  server_properties = <<-PROPERTIES
    auto.create.topics.enable=true
    default.replication.factor=3
    min.insync.replicas=2
    num.partitions=6
    log.retention.hours=168
    unclean.leader.election.enable=false
  PROPERTIES

  lifecycle {
    create_before_destroy = true
  }
}
