# What each workload may do, and nothing else. A pod gets its role by pod identity: its service account is named here, and no key
# of AWS is in the cluster.
locals {
  assumed_by_pods = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    }]
  })

  glue_arn       = "arn:${local.partition}:glue:${var.region}:${local.account_id}"
  kafka_arn      = "arn:${local.partition}:kafka:${var.region}:${local.account_id}"
  stream_cluster = aws_msk_cluster.this.arn
  # arn:...:cluster/NAME/UUID -> arn:...:topic/NAME/UUID/*
  stream_topics   = "${replace(aws_msk_cluster.this.arn, ":cluster/", ":topic/")}/*"
  stream_groups   = "${replace(aws_msk_cluster.this.arn, ":cluster/", ":group/")}/perennial-*"
  database_secret = aws_db_instance.this.master_user_secret[0].secret_arn

  may = {
    use_data_key = {
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [aws_kms_key.this["data"].arn]
    }
    write_lake = {
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
      Resource = ["${aws_s3_bucket.this["lake"].arn}/lake/*"]
    }
    list_lake = {
      Effect   = "Allow"
      Action   = ["s3:ListBucket", "s3:GetBucketLocation"]
      Resource = [aws_s3_bucket.this["lake"].arn]
    }
    use_catalog = {
      Effect = "Allow"
      Action = [
        "glue:GetDatabase", "glue:CreateDatabase", "glue:GetTable", "glue:GetTables", "glue:CreateTable", "glue:UpdateTable",
        "glue:DeleteTable",
      ]
      Resource = concat(
        ["${local.glue_arn}:catalog"],
        [for pipeline in sort(var.pipelines) : "${local.glue_arn}:database/${pipeline}"],
        [for pipeline in sort(var.pipelines) : "${local.glue_arn}:table/${pipeline}/*"],
      )
    }
    write_artifacts = {
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
      Resource = ["${aws_s3_bucket.this["artifacts"].arn}/*"]
    }
    read_artifacts = {
      Effect   = "Allow"
      Action   = ["s3:GetObject"]
      Resource = ["${aws_s3_bucket.this["artifacts"].arn}/*"]
    }
    list_artifacts = {
      Effect   = "Allow"
      Action   = ["s3:ListBucket", "s3:GetBucketLocation"]
      Resource = [aws_s3_bucket.this["artifacts"].arn]
    }
    connect_stream = {
      Effect   = "Allow"
      Action   = ["kafka-cluster:Connect", "kafka-cluster:DescribeCluster", "kafka-cluster:WriteDataIdempotently"] # kafka-python's producers do, by default
      Resource = [local.stream_cluster]
    }
    read_stream = {
      Effect   = "Allow"
      Action   = ["kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"]
      Resource = [local.stream_topics]
    }
    write_stream = {
      Effect   = "Allow"
      Action   = ["kafka-cluster:DescribeTopic", "kafka-cluster:CreateTopic", "kafka-cluster:WriteData"]
      Resource = [local.stream_topics]
    }
    tell_positions = {
      Effect   = "Allow"
      Action   = ["kafka-cluster:DescribeGroup", "kafka-cluster:AlterGroup"]
      Resource = [local.stream_groups]
    }
    read_database_secret = {
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = [local.database_secret]
    }
    read_online_store_secret = {
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = [aws_secretsmanager_secret.online_store.arn]
    }
    read_alert_urls = {
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = [aws_secretsmanager_secret.alert_urls.arn]
    }
    take_interruption_notices = {
      Effect   = "Allow"
      Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
      Resource = [aws_sqs_queue.interruptions.arn]
    }
    tell_people = {
      Effect   = "Allow"
      Action   = ["sns:Publish"]
      Resource = [aws_sns_topic.alerts.arn]
    }
    use_messages_key = {
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource = [aws_kms_key.this["messages"].arn]
    }
    see_node_groups = {
      Effect = "Allow"
      Action = [
        "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLaunchConfigurations",
        "autoscaling:DescribeScalingActivities", "autoscaling:DescribeTags", "ec2:DescribeImages", "ec2:DescribeInstanceTypes",
        "ec2:DescribeLaunchTemplateVersions", "ec2:GetInstanceTypesFromInstanceRequirements",
      ]
      Resource = ["*"] # these calls list; AWS knows no narrower resource for them
    }
    scale_node_groups = {
      Effect    = "Allow"
      Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
      Resource  = ["arn:${local.partition}:autoscaling:${var.region}:${local.account_id}:autoScalingGroup:*:autoScalingGroupName/eks-${var.name}-*"]
      Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}" = "owned" } }
    }
    read_node_group = {
      Effect   = "Allow"
      Action   = ["eks:DescribeNodegroup"]
      Resource = ["arn:${local.partition}:eks:${var.region}:${local.account_id}:nodegroup/${var.name}/*/*"]
    }
    encrypt_disks = {
      Effect   = "Allow"
      Action   = ["kms:Decrypt", "kms:GenerateDataKeyWithoutPlaintext", "kms:CreateGrant", "kms:DescribeKey"]
      Resource = [aws_kms_key.this["nodes"].arn]
    }
  }

  workloads = {
    # The Prefect worker and the runs it starts: ingest, score, monitor, retrain, rollout.
    worker = {
      namespace = local.namespace
      may = [
        "use_data_key", "write_lake", "list_lake", "use_catalog", "write_artifacts", "list_artifacts", "connect_stream", "read_stream",
        "write_stream", "tell_positions", "take_interruption_notices", "tell_people", "use_messages_key",
      ]
    }
    # The one job that reads secrets: it makes what the others log in with (docs/decisions/0017).
    accounts = {
      namespace = local.namespace
      may       = ["use_data_key", "read_database_secret", "read_online_store_secret", "read_alert_urls"]
    }
    # The scoring service reads models here; features and the ledger it asks for by their own protocols.
    service = {
      namespace = local.namespace
      may       = ["use_data_key", "read_artifacts", "list_artifacts"]
    }
    mlflow = {
      namespace = local.namespace
      may       = ["use_data_key", "write_artifacts", "list_artifacts"]
    }
    # Mails of what is wrong in the cluster; its topic is encrypted.
    alertmanager = {
      namespace = local.namespace
      may       = ["tell_people", "use_messages_key"]
    }
    cluster-autoscaler = {
      namespace = "kube-system"
      may       = ["see_node_groups", "scale_node_groups", "read_node_group"]
    }
  }
}

resource "aws_iam_role" "workload" {
  for_each = local.workloads

  name               = "${var.name}-${each.key}"
  assume_role_policy = local.assumed_by_pods
}

resource "aws_iam_role_policy" "workload" {
  for_each = local.workloads

  name = each.key
  role = aws_iam_role.workload[each.key].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [for what in each.value.may : merge({ Sid = replace(title(replace(what, "_", " ")), " ", "") }, local.may[what])]
  })
}

resource "aws_eks_pod_identity_association" "workload" {
  for_each = local.workloads

  cluster_name    = aws_eks_cluster.this.name
  namespace       = each.value.namespace
  service_account = each.key
  role_arn        = aws_iam_role.workload[each.key].arn

  depends_on = [aws_eks_addon.before_nodes]
}

# For disks of pods whose storage class names the nodes' key.
resource "aws_iam_role_policy" "disks" {
  name = "encrypt-disks"
  role = aws_iam_role.addon["aws-ebs-csi-driver"].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [local.may.encrypt_disks]
  })
}

# For whoever sends events from outside the cluster: attach it to the sender's own role.
resource "aws_iam_policy" "event_producer" {
  name        = "${var.name}-event-producer"
  description = "May write events to the stream of ${var.name}"
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [local.may.connect_stream, local.may.write_stream]
  })
}
