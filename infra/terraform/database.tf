# PostgreSQL for the ledger (database perennial), MLflow and Prefect (databases of their names, made in infra/kubernetes).
resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_157: size small has no standby, which would double its price; production has one
  #checkov:skip=CKV_AWS_133: backups are kept 7 or 30 days by size, which checkov cannot look up in sizes.tf
  #checkov:skip=CKV2_AWS_30: log_statement would write the passwords of CREATE ROLE and ALTER ROLE into the log; slow statements are logged
  #checkov:skip=CKV_AWS_293: on unless deletion_protection is set to false, which is the documented way to destroy it
  identifier     = var.name
  engine         = "postgres"
  engine_version = "17"
  instance_class = local.size.database_class
  db_name        = "perennial"
  username       = "perennial"
  port           = 5432

  # RDS makes the password, keeps it in Secrets Manager and changes it every week; Terraform never sees it.
  manage_master_user_password         = true
  master_user_secret_kms_key_id       = aws_kms_key.this["data"].key_id
  iam_database_authentication_enabled = true

  allocated_storage     = local.size.database_gb
  max_allocated_storage = local.size.database_max_gb
  storage_type          = "gp3"
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.this["data"].arn

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.store["database"].id]
  parameter_group_name   = aws_db_parameter_group.this.name
  publicly_accessible    = false
  multi_az               = local.size.database_standby

  backup_retention_period    = local.size.database_backup_days
  backup_window              = "02:00-03:00"
  maintenance_window         = "sun:03:30-sun:04:30"
  auto_minor_version_upgrade = true
  copy_tags_to_snapshot      = true
  deletion_protection        = var.deletion_protection
  apply_immediately          = true # else a change waits for Sunday, and each plan until then shows it again

  # Even a wanted destroy leaves a snapshot, named by the VPC so that the next installation's does not meet it.
  skip_final_snapshot       = false
  final_snapshot_identifier = "${var.name}-final-${aws_vpc.this.id}"

  enabled_cloudwatch_logs_exports       = ["postgresql", "upgrade"]
  performance_insights_enabled          = true
  performance_insights_kms_key_id       = aws_kms_key.this["data"].arn
  performance_insights_retention_period = 7
  monitoring_interval                   = 60
  monitoring_role_arn                   = aws_iam_role.database_monitoring.arn

  depends_on = [aws_iam_role_policy_attachment.database_monitoring, aws_cloudwatch_log_group.this]
}

resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = aws_subnet.private[*].id
}

resource "aws_db_parameter_group" "this" {
  name   = "${var.name}-postgres17"
  family = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_iam_role" "database_monitoring" {
  name = "${var.name}-database-monitoring"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "monitoring.rds.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "database_monitoring" {
  role       = aws_iam_role.database_monitoring.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}
