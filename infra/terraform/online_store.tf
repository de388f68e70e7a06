# Redis for Feast's online features. It can always be filled again from the lake: `perennial features materialize`.
resource "aws_elasticache_replication_group" "this" {
  #checkov:skip=CKV2_AWS_50: size small is one node, since its contents can be made again; production fails over to a replica
  replication_group_id = var.name
  description          = "Online features of ${var.name}"
  engine               = "redis"
  engine_version       = "7.1"
  node_type            = local.size.online_store_class
  num_cache_clusters   = 1 + local.size.online_store_replicas
  port                 = 6379

  automatic_failover_enabled = local.size.online_store_replicas > 0
  multi_az_enabled           = local.size.online_store_replicas > 0

  parameter_group_name = aws_elasticache_parameter_group.this.name
  subnet_group_name    = aws_elasticache_subnet_group.this.name
  security_group_ids   = [aws_security_group.store["online-store"].id]

  at_rest_encryption_enabled = true
  kms_key_id                 = aws_kms_key.this["data"].arn
  transit_encryption_enabled = true
  auth_token                 = sensitive(terraform_data.online_store_password.output)

  snapshot_retention_limit  = 3
  snapshot_window           = "02:00-03:00"
  maintenance_window        = "sun:03:30-sun:04:30"
  final_snapshot_identifier = "${var.name}-final-${aws_vpc.this.id}"
  apply_immediately         = true

  lifecycle {
    ignore_changes = [auth_token] # who changes it does so outside, in two steps
  }
}

resource "aws_elasticache_parameter_group" "this" {
  name   = "${var.name}-redis7"
  family = "redis7"

  # Features that fit no more are refused and alarm; they must not silently push out others.
  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

resource "aws_elasticache_subnet_group" "this" {
  name       = var.name
  subnet_ids = aws_subnet.private[*].id
}

# AWS makes no password for Redis by itself, so this one is in Terraform's state, too: keep the state as you keep a password. Secrets
# Manager's generator is no help: Terraform prints what it reads, as the id of the reading. Two uuids are 256 bits of chance.
resource "terraform_data" "online_store_password" {
  input = sensitive(replace("${uuid()}${uuid()}", "-", ""))

  lifecycle {
    ignore_changes = [input]
  }
}
