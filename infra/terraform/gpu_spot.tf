# GPU nodes, none until a retrain asks for one: on spot, and on demand for when spot capacity stays away. The autoscaler's priority
# expander takes spot first (docs/decisions/0016).
data "aws_ec2_instance_type_offerings" "gpu" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = local.size.gpu_instance_types
  }
}

locals {
  gpu_offered = data.aws_ec2_instance_type_offerings.gpu
  gpu_offers  = toset([for index, type in local.gpu_offered.instance_types : "${type} ${local.gpu_offered.locations[index]}"])

  # Not every zone has every type, and EKS refuses a group with a zone that lacks one of its types. So these are the zones, and the types
  # that all of them have, of which there are the most pairs: each is a pool of spot capacity of its own. Types are in the size's order.
  gpu_choices = [
    for zones in [[0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]] : {
      zones = zones
      types = [
        for type in local.size.gpu_instance_types : type
        if alltrue([for zone in zones : contains(local.gpu_offers, "${type} ${aws_subnet.private[zone].availability_zone}")])
      ]
    }
  ]
  gpu_pools  = [for choice in local.gpu_choices : length(choice.types) >= 2 ? length(choice.zones) * length(choice.types) : 0]
  gpu_choice = local.gpu_choices[index(local.gpu_pools, max(local.gpu_pools...))]

  gpu_instance_types = local.gpu_choice.types
  gpu_subnet_ids     = [for zone in local.gpu_choice.zones : aws_subnet.private[zone].id]
  gpu_max_nodes      = coalesce(var.gpu_max_nodes, local.size.gpu_max_nodes)

  gpu_taint  = { key = "nvidia.com/gpu", value = "present", effect = "NO_SCHEDULE" }
  spot_taint = { key = "perennial/capacity", value = "spot", effect = "NO_SCHEDULE" }

  # By accelerator the autoscaler knows that a node without a GPU is one whose device plugin has not begun yet, and starts no second.
  gpu_labels = { "perennial/pool" = "gpu", "nvidia.com/gpu.present" = "true", "k8s.amazonaws.com/accelerator" = "nvidia" }

  gpu_groups = {
    gpu-spot = {
      capacity_type = "SPOT"
      labels        = merge(local.gpu_labels, { "perennial/capacity" = "spot" })
      # A pod must say that it bears being interrupted.
      taints = [local.gpu_taint, local.spot_taint]
    }
    gpu-on-demand = {
      capacity_type = "ON_DEMAND"
      labels        = merge(local.gpu_labels, { "perennial/capacity" = "on-demand" })
      taints        = [local.gpu_taint]
    }
  }
}

resource "aws_eks_node_group" "gpu" {
  for_each = local.gpu_groups

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "${var.name}-${each.key}"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = local.gpu_subnet_ids
  version         = aws_eks_cluster.this.version

  ami_type       = "AL2023_x86_64_NVIDIA"
  capacity_type  = each.value.capacity_type
  instance_types = local.gpu_instance_types
  labels         = each.value.labels

  launch_template {
    id      = aws_launch_template.node["gpu"].id
    version = aws_launch_template.node["gpu"].latest_version
  }

  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = local.gpu_max_nodes
  }

  # Device plugins and daemons tolerate both taints; what has no business on a node of this price does not come here.
  dynamic "taint" {
    for_each = each.value.taints
    content {
      key    = taint.value.key
      value  = taint.value.value
      effect = taint.value.effect
    }
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # the autoscaler's

    precondition {
      condition     = length(local.gpu_instance_types) >= 2
      error_message = "${var.region} offers ${jsonencode([for type in local.size.gpu_instance_types : type if contains(local.gpu_offered.instance_types, type)])} of ${jsonencode(local.size.gpu_instance_types)}, and none of the zones ${jsonencode(local.zones)} has two of them, which spot needs to choose from. Take another region, such as us-east-1 or eu-central-1."
    }
  }

  depends_on = [aws_iam_role_policy_attachment.node, aws_eks_addon.before_nodes]
}

# A group without nodes cannot be looked at: these tags tell the autoscaler what a node of it would have.
locals {
  node_template = "k8s.io/cluster-autoscaler/node-template"
  kubernetes_effects = {
    NO_SCHEDULE        = "NoSchedule"
    NO_EXECUTE         = "NoExecute"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
  }

  gpu_group_tags = merge([
    for group, is in local.gpu_groups : merge(
      { for key, value in is.labels : "${group}/label/${key}" => { group = group, key = "label/${key}", value = value } },
      { for taint in is.taints : "${group}/taint/${taint.key}" => { group = group, key = "taint/${taint.key}", value = "${taint.value}:${local.kubernetes_effects[taint.effect]}" } },
      { "${group}/resources/nvidia.com/gpu" = { group = group, key = "resources/nvidia.com/gpu", value = "1" } },
    )
  ]...)
}

resource "aws_autoscaling_group_tag" "gpu" {
  for_each = local.gpu_group_tags

  autoscaling_group_name = aws_eks_node_group.gpu[each.value.group].resources[0].autoscaling_groups[0].name

  tag {
    key                 = "${local.node_template}/${each.value.key}"
    value               = each.value.value
    propagate_at_launch = false
  }
}
