# Refuses `terraform destroy` while deletion_protection is on, before anything is gone. It depends on what nothing else depends on,
# and so goes first: what it refuses to wait for is not reached.
resource "terraform_data" "deletion_protection" {
  input = var.deletion_protection

  provisioner "local-exec" {
    when    = destroy
    command = self.input ? "echo deletion_protection is on: set it to false, run terraform apply, then terraform destroy again && exit 1" : "exit 0"
  }

  depends_on = [
    terraform_data.catalog_protection,
    terraform_data.installation,
    aws_autoscaling_group_tag.gpu,
    aws_budgets_budget.monthly,
    aws_cloudwatch_event_target.interruption,
    aws_cloudwatch_metric_alarm.this,
    aws_db_instance.this,
    aws_default_security_group.unused,
    aws_ecr_lifecycle_policy.this,
    aws_eks_access_policy_association.admin,
    aws_eks_addon.on_nodes,
    aws_eks_node_group.gpu,
    aws_eks_pod_identity_association.workload,
    aws_elasticache_replication_group.this,
    aws_flow_log.vpc,
    aws_glue_catalog_database.pipeline,
    aws_iam_policy.event_producer,
    aws_iam_role_policy.disks,
    aws_iam_role_policy.flow_log,
    aws_iam_role_policy.workload,
    aws_iam_role_policy_attachment.addon,
    aws_kms_alias.this,
    aws_msk_cluster.this,
    aws_route.internet,
    aws_route_table_association.private,
    aws_route_table_association.public,
    aws_s3_bucket_lifecycle_configuration.this,
    aws_s3_bucket_logging.this,
    aws_s3_bucket_ownership_controls.this,
    aws_s3_bucket_policy.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_secretsmanager_secret_version.online_store,
    aws_secretsmanager_secret.alert_urls,
    aws_sns_topic_policy.alerts,
    aws_sns_topic_subscription.alerts,
    aws_sqs_queue_policy.interruptions,
    aws_vpc_endpoint.s3,
    aws_vpc_security_group_ingress_rule.store,
  ]
}

# A pipeline that is no longer listed would take its Glue database, and what is known of its tables, with it.
resource "terraform_data" "catalog_protection" {
  for_each = var.pipelines
  input    = var.deletion_protection

  provisioner "local-exec" {
    when    = destroy
    command = self.input ? "echo deletion_protection is on, and ${each.key} is missing in pipelines: name it again, or set deletion_protection to false and run terraform apply first && exit 1" : "exit 0"
  }

  depends_on = [aws_glue_catalog_database.pipeline]
}

# What was said at the first apply, and in which account. Of other values Terraform would make everything anew, and the events would
# be lost; in another account it would take what it does not find there for gone.
locals {
  installation = { name = var.name, region = var.region, vpc_cidr = var.vpc_cidr, account = local.account_id }
}

resource "terraform_data" "installation" {
  input = local.installation

  lifecycle {
    ignore_changes = [input]

    postcondition {
      condition     = self.output == local.installation
      error_message = "This state is of ${self.output.name} in ${self.output.region} with ${self.output.vpc_cidr} in the account ${self.output.account}, not of ${var.name} in ${var.region} with ${var.vpc_cidr} in the account ${local.account_id}. They cannot be changed: write what was, with credentials of that account, or make another installation in a folder of its own."
    }
  }
}
