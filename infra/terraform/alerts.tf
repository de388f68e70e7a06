# Alarms of the infrastructure, by mail. What the pipelines find goes where PERENNIAL_ALERT_URLS say.
resource "aws_sns_topic" "alerts" {
  name              = "${var.name}-alerts"
  kms_master_key_id = aws_kms_key.this["messages"].arn
}

resource "aws_sns_topic_policy" "alerts" {
  arn = aws_sns_topic.alerts.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Alarms"
        Effect    = "Allow"
        Action    = "sns:Publish"
        Principal = { Service = "cloudwatch.amazonaws.com" }
        Resource  = aws_sns_topic.alerts.arn
        Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
      },
      {
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Action    = "sns:Publish"
        Principal = "*"
        Resource  = aws_sns_topic.alerts.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

resource "aws_sns_topic_subscription" "alerts" {
  for_each = toset(var.alert_emails)

  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  brokers = toset(["1", "2", "3"])

  alarms = merge(
    {
      database-cpu = {
        namespace   = "AWS/RDS", metric = "CPUUtilization", statistic = "Average", above = true, threshold = 80, minutes = 15
        dimensions  = { DBInstanceIdentifier = aws_db_instance.this.identifier }
        description = "The database has been over 80 % busy for a quarter of an hour: see Performance Insights, or take a larger size."
      }
      database-storage = {
        namespace   = "AWS/RDS", metric = "FreeStorageSpace", statistic = "Minimum", above = false, threshold = 2147483648, minutes = 5
        dimensions  = { DBInstanceIdentifier = aws_db_instance.this.identifier }
        description = "The database has less than 2 GiB left. It grows by itself up to its limit: raise database_max_gb in sizes.tf."
      }
      stream-offline-partitions = {
        namespace   = "AWS/Kafka", metric = "OfflinePartitionsCount", statistic = "Maximum", above = true, threshold = 0, minutes = 5
        dimensions  = { "Cluster Name" = aws_msk_cluster.this.cluster_name }
        description = "Partitions of the event stream have no leader: events cannot be sent. See the brokers' log group."
      }
      spot-interruptions = {
        namespace   = "AWS/Events", metric = "MatchedEvents", statistic = "Sum", above = true, threshold = 5, minutes = 60
        dimensions  = { RuleName = aws_cloudwatch_event_rule.interruption["spot-interruption"].name }
        description = "More than five spot nodes of this account were taken in an hour: retrains go on, on demand or later, and cost more time."
      }
    },
    {
      # ElastiCache measures nodes and not the group; it numbers them 001, 002 and so on.
      for node in range(1, local.size.online_store_replicas + 2) : format("online-store-memory-%03d", node) => {
        namespace   = "AWS/ElastiCache", metric = "DatabaseMemoryUsagePercentage", statistic = "Maximum", above = true, threshold = 80, minutes = 5
        dimensions  = { CacheClusterId = format("%s-%03d", aws_elasticache_replication_group.this.replication_group_id, node) }
        description = "Redis is over 80 % full and refuses features when it is full: take a larger node in sizes.tf."
      }
    },
    {
      for broker in local.brokers : "stream-disk-${broker}" => {
        namespace   = "AWS/Kafka", metric = "KafkaDataLogsDiskUsed", statistic = "Maximum", above = true, threshold = 80, minutes = 5
        dimensions  = { "Cluster Name" = aws_msk_cluster.this.cluster_name, "Broker ID" = broker }
        description = "Broker ${broker} of the event stream is over 80 % full and stops when it is full: enlarge its disk, or keep events for less time."
      }
    },
  )
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  statistic           = each.value.statistic
  dimensions          = each.value.dimensions
  comparison_operator = each.value.above ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = each.value.threshold
  period              = each.value.minutes * 60
  evaluation_periods  = 1
  # Matched events are told only when there are some; of a store that says nothing it is not known whether it is well.
  treat_missing_data = each.key == "spot-interruptions" ? "notBreaching" : "missing"
  alarm_actions      = [aws_sns_topic.alerts.arn]
  ok_actions         = [aws_sns_topic.alerts.arn]
}
