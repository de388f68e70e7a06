data "aws_ec2_instance_type_offerings" "system" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = local.size.system_instance_types
  }
}

locals {
  system_offered = data.aws_ec2_instance_type_offerings.system
  # No more zones than there are nodes at least. The autoscaler cannot ask for a zone, and a pod whose disk is in one without a node
  # would wait for ever (kubernetes/autoscaler #6000); Auto Scaling itself keeps as many nodes in each.
  system_subnets = slice(aws_subnet.private, 0, min(3, local.size.system_nodes.min))
  system_offers  = toset([for index, type in local.system_offered.instance_types : "${type} ${local.system_offered.locations[index]}"])
}

# Where everything runs that must not be interrupted: the services, the worker, and runs without a GPU.
resource "aws_eks_node_group" "system" {
  cluster_name           = aws_eks_cluster.this.name
  node_group_name_prefix = "${var.name}-system-"
  node_role_arn          = aws_iam_role.node.arn
  subnet_ids             = local.system_subnets[*].id
  version                = aws_eks_cluster.this.version

  ami_type       = "AL2023_x86_64_STANDARD"
  capacity_type  = "ON_DEMAND"
  instance_types = local.size.system_instance_types
  labels         = { "perennial/pool" = "system" }

  launch_template {
    id      = aws_launch_template.node["system"].id
    version = aws_launch_template.node["system"].latest_version
  }

  scaling_config {
    min_size     = local.size.system_nodes.min
    desired_size = local.size.system_nodes.desired
    max_size     = local.size.system_nodes.max
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    # Of another instance type it is another group: what runs moves over.
    create_before_destroy = true
    ignore_changes        = [scaling_config[0].desired_size] # the autoscaler's

    precondition {
      condition     = alltrue([for pair in setproduct(local.size.system_instance_types, local.system_subnets[*].availability_zone) : contains(local.system_offers, join(" ", pair))])
      error_message = "${var.region} does not offer ${jsonencode(local.size.system_instance_types)} in each of the zones ${jsonencode(local.system_subnets[*].availability_zone)}, and EKS makes no group of such nodes. Take another region, other zones (availability_zones), or other types (sizes.tf)."
    }
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.before_nodes]
}

resource "aws_launch_template" "node" {
  for_each = { system = 50, gpu = 150 } # gigabytes: an image with CUDA and its unpacked layers take some tens

  name                   = "${var.name}-${each.key}"
  update_default_version = true
  vpc_security_group_ids = [aws_eks_cluster.this.vpc_config[0].cluster_security_group_id, aws_security_group.node.id]

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = each.value
      encrypted             = true
      kms_key_id            = aws_kms_key.this["nodes"].arn
      delete_on_termination = true
    }
  }

  # One hop: pods cannot ask for the node's own credentials; they have their pod identity.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-${each.key}", "perennial:installation" = var.name })
    }
  }
}

# Says "one of our nodes" to the stores, and opens nothing by itself; what the nodes may reach is in the cluster's own group.
resource "aws_security_group" "node" {
  name        = "${var.name}-node"
  description = "Nodes of ${var.name}, as the stores know them"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = "${var.name}-node" }
}

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}
