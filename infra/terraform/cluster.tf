resource "aws_eks_cluster" "this" {
  #checkov:skip=CKV_AWS_39: the public endpoint is off when api_access_cidrs is empty; otherwise it answers those addresses only
  #checkov:skip=CKV_AWS_38: api_access_cidrs refuses ranges wider than /8, and 0.0.0.0/0 with them
  name     = var.name
  version  = var.kubernetes_version
  role_arn = aws_iam_role.cluster.arn

  # The add-ons below are managed; EKS need not install its own copies first.
  bootstrap_self_managed_addons = false
  enabled_cluster_log_types     = ["api", "audit", "authenticator", "controllerManager", "scheduler"]

  access_config {
    authentication_mode = "API"
    # Else whoever applied first would stay administrator without being named anywhere.
    bootstrap_cluster_creator_admin_permissions = false
  }

  encryption_config {
    resources = ["secrets"]
    provider {
      key_arn = aws_kms_key.this["cluster"].arn
    }
  }

  upgrade_policy {
    support_type = "STANDARD"
  }

  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = length(var.api_access_cidrs) > 0
    public_access_cidrs     = length(var.api_access_cidrs) > 0 ? var.api_access_cidrs : null
  }

  depends_on = [
    aws_iam_role_policy_attachment.cluster,
    aws_iam_role_policy.cluster_key,
    aws_cloudwatch_log_group.this, # EKS would make it without a key and without an end
    aws_route.internet,
    aws_route.nat,
    aws_route_table_association.private, # nodes need the way out from their first minute to their last
    aws_route_table_association.public,
  ]
}

resource "aws_iam_role" "cluster" {
  name = "${var.name}-cluster"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "eks.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

resource "aws_iam_role_policy" "cluster_key" {
  name = "use-key"
  role = aws_iam_role.cluster.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey", "kms:CreateGrant"]
      Resource = aws_kms_key.this["cluster"].arn
    }]
  })
}

resource "aws_eks_access_entry" "admin" {
  for_each = toset(var.admin_principal_arns)

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = each.value
}

resource "aws_eks_access_policy_association" "admin" {
  for_each = aws_eks_access_entry.admin

  cluster_name  = aws_eks_cluster.this.name
  principal_arn = each.value.principal_arn
  policy_arn    = "arn:${local.partition}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"

  access_scope {
    type = "cluster"
  }
}

# Without these no node becomes ready, so they come before the nodes.
resource "aws_eks_addon" "before_nodes" {
  for_each = toset(["vpc-cni", "kube-proxy", "eks-pod-identity-agent"])

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  configuration_values = lookup(local.addon_configurations, each.value, null)

  dynamic "pod_identity_association" {
    for_each = each.value == "vpc-cni" ? ["aws-node"] : []
    content {
      service_account = pod_identity_association.value
      role_arn        = aws_iam_role.addon["vpc-cni"].arn
    }
  }

  # While a node goes, the network add-on takes away its network interfaces; without rights it leaves them, and no subnet can go.
  depends_on = [aws_iam_role_policy_attachment.addon]
}

# These run on nodes and are not healthy before there are some.
resource "aws_eks_addon" "on_nodes" {
  for_each = toset(["coredns", "aws-ebs-csi-driver", "metrics-server"])

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  configuration_values = each.value == "aws-ebs-csi-driver" ? jsonencode({ defaultStorageClass = { enabled = true } }) : null

  dynamic "pod_identity_association" {
    for_each = each.value == "aws-ebs-csi-driver" ? ["ebs-csi-controller-sa"] : []
    content {
      service_account = pod_identity_association.value
      role_arn        = aws_iam_role.addon["aws-ebs-csi-driver"].arn
    }
  }

  depends_on = [aws_eks_node_group.system, aws_iam_role_policy_attachment.addon, aws_iam_role_policy.disks]
}

resource "aws_iam_role" "addon" {
  for_each = local.addon_policies

  name               = "${var.name}-${each.key}"
  assume_role_policy = local.assumed_by_pods
}

resource "aws_iam_role_policy_attachment" "addon" {
  for_each = local.addon_policies

  role       = aws_iam_role.addon[each.key].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

locals {
  addon_configurations = {
    # Network policies of Kubernetes are carried out by the network add-on, and only when it is told to.
    vpc-cni = jsonencode({ enableNetworkPolicy = "true" })
    # Pods on GPU nodes need their roles, too.
    eks-pod-identity-agent = jsonencode({ tolerations = [{ operator = "Exists" }] })
  }

  addon_policies = {
    vpc-cni            = "AmazonEKS_CNI_Policy"
    aws-ebs-csi-driver = "service-role/AmazonEBSCSIDriverPolicy"
  }
}
