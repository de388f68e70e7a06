# `perennial infra outputs` makes settings of these; README.md lists them. No value here is secret: passwords are where the
# outputs that end in _secret_arn point.

output "region" {
  description = "Region of everything."
  value       = var.region
}

output "account_id" {
  description = "Account of everything."
  value       = local.account_id
}

output "size" {
  description = "small or production."
  value       = var.size
}

output "cluster_name" {
  description = "EKS cluster."
  value       = aws_eks_cluster.this.name
}

output "cluster_version" {
  description = "Kubernetes version of the cluster."
  value       = aws_eks_cluster.this.version
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = aws_eks_cluster.this.endpoint
}

output "kubeconfig_command" {
  description = "Points kubectl at the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "vpc_id" {
  description = "VPC of everything: what to peer with, or to bring a VPN to."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Subnets of the nodes and the stores, one a zone."
  value       = aws_subnet.private[*].id
}

output "cluster_security_group_id" {
  description = "Security group of the Kubernetes API inside the VPC; whoever has it, too, reaches the API and the nodes."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "store_clients_security_group_id" {
  description = "Whoever has this security group, such as a sender of events or a bastion in the VPC, reaches PostgreSQL, Redis and Kafka."
  value       = aws_security_group.node.id
}

output "namespace" {
  description = "Kubernetes namespace whose service accounts have the roles below."
  value       = local.namespace
}

output "service_accounts" {
  description = "By workload: its Kubernetes service account, namespace, and IAM role."
  value = {
    for workload, is in local.workloads : workload => {
      namespace       = is.namespace
      service_account = workload
      role_arn        = aws_iam_role.workload[workload].arn
    }
  }
}

output "image_repositories" {
  description = "By image, worker and service: where to push it."
  value       = { for image, repository in aws_ecr_repository.this : image => repository.repository_url }
}

output "kafka_bootstrap_servers" {
  description = "PERENNIAL_KAFKA_BOOTSTRAP_SERVERS: brokers for clients that come with IAM."
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_iam
}

output "kafka_options" {
  description = "PERENNIAL_KAFKA_OPTIONS."
  value       = { security_protocol = "SASL_SSL", sasl_mechanism = "AWS_MSK_IAM" }
}

output "kafka_producer_policy_arn" {
  description = "Attach it to the role of whoever sends events."
  value       = aws_iam_policy.event_producer.arn
}

output "lake_bucket" {
  description = "Bucket of the lake."
  value       = aws_s3_bucket.this["lake"].id
}

output "lake_warehouse" {
  description = "PERENNIAL_LAKE_WAREHOUSE."
  value       = local.lake_warehouse
}

output "lake_catalog_uri" {
  description = "PERENNIAL_LAKE_CATALOG_URI."
  value       = "glue://${var.region}"
}

output "lake_databases" {
  description = "Glue databases, one a pipeline."
  value       = [for database in aws_glue_catalog_database.pipeline : database.name]
}

output "artifacts_bucket" {
  description = "Bucket of models, checkpoints and reports."
  value       = aws_s3_bucket.this["artifacts"].id
}

output "mlflow_artifact_root" {
  description = "MLflow's --default-artifact-root."
  value       = "s3://${aws_s3_bucket.this["artifacts"].id}/mlflow"
}

output "checkpoints" {
  description = "PERENNIAL_CHECKPOINTS: where fits keep how far they are, for a spot node that goes."
  value       = "s3://${aws_s3_bucket.this["artifacts"].id}/checkpoints"
}

output "database_host" {
  description = "PostgreSQL: host."
  value       = aws_db_instance.this.address
}

output "database_port" {
  description = "PostgreSQL: port."
  value       = aws_db_instance.this.port
}

output "database_name" {
  description = "PostgreSQL: database of the ledger. Those of MLflow and Prefect, mlflow and prefect, are made in infra/kubernetes."
  value       = aws_db_instance.this.db_name
}

output "database_secret_arn" {
  description = "Secret with the keys username and password; RDS changes it every seven days."
  value       = local.database_secret
}

output "online_store_host" {
  description = "Redis: host, reached by rediss:// only."
  value       = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "online_store_port" {
  description = "Redis: port."
  value       = aws_elasticache_replication_group.this.port
}

output "online_store_secret_arn" {
  description = "Secret with the keys host, port and password."
  value       = aws_secretsmanager_secret.online_store.arn
}

output "alert_urls_secret_arn" {
  description = "Secret for PERENNIAL_ALERT_URLS; empty until you fill it."
  value       = aws_secretsmanager_secret.alert_urls.arn
}

output "alert_topic_arn" {
  description = "SNS topic of alarms; each address has to confirm the mail it gets."
  value       = aws_sns_topic.alerts.arn
}

output "interruption_queue_url" {
  description = "SQS queue of spot interruption, rebalance and maintenance notices."
  value       = aws_sqs_queue.interruptions.url
}

output "node_groups" {
  description = "By group: EKS node group, capacity, instance types, labels, taints (for tolerations) and most nodes."
  value = merge(
    {
      system = {
        name           = aws_eks_node_group.system.node_group_name
        capacity_type  = "ON_DEMAND"
        instance_types = local.size.system_instance_types
        labels         = aws_eks_node_group.system.labels
        taints         = []
        max_nodes      = local.size.system_nodes.max
      }
    },
    {
      for group, is in local.gpu_groups : group => {
        name           = aws_eks_node_group.gpu[group].node_group_name
        capacity_type  = is.capacity_type
        instance_types = local.gpu_instance_types
        labels         = is.labels
        taints         = is.taints
        max_nodes      = local.gpu_max_nodes
      }
    },
  )
}

output "disk_key_arn" {
  description = "KMS key of the nodes' disks, for those of pods, too."
  value       = aws_kms_key.this["nodes"].arn
}

output "monthly_budget_usd" {
  description = "Budget that mails are sent by."
  value       = var.monthly_budget_usd
}

output "deletion_protection" {
  description = "Whether `terraform destroy` is refused."
  value       = var.deletion_protection
}
