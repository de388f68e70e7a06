# The database's password is in a secret that RDS makes. These two are ours.
resource "aws_secretsmanager_secret" "online_store" {
  #checkov:skip=CKV2_AWS_57: ElastiCache's token is changed by hand, in two steps, so that no client is locked out between them
  name                    = "${var.name}/online-store"
  description             = "Redis: host, port and token"
  kms_key_id              = aws_kms_key.this["data"].arn
  recovery_window_in_days = var.deletion_protection ? 30 : 0 # 0, so that the name is free for the next apply
}

resource "aws_secretsmanager_secret_version" "online_store" {
  secret_id = aws_secretsmanager_secret.online_store.id
  secret_string = jsonencode({
    host     = aws_elasticache_replication_group.this.primary_endpoint_address
    port     = aws_elasticache_replication_group.this.port
    password = aws_elasticache_replication_group.this.auth_token
  })
}

# Filled by hand, since the URLs hold tokens: aws secretsmanager put-secret-value (docs/aws.md).
resource "aws_secretsmanager_secret" "alert_urls" {
  #checkov:skip=CKV2_AWS_57: tokens of Slack and the like are made there; nothing here could change them
  name                    = "${var.name}/alert-urls"
  description             = "PERENNIAL_ALERT_URLS: where the pipelines' alerts go, apprise URLs separated by blanks"
  kms_key_id              = aws_kms_key.this["data"].arn
  recovery_window_in_days = var.deletion_protection ? 30 : 0
}
