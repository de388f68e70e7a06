variable "name" {
  description = "Name of this installation; the cluster, the buckets and everything else begin with it."
  type        = string
  default     = "perennial"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9]|-[a-z0-9]){2,19}$", var.name)) && length(var.name) <= 20
    error_message = "name is \"${var.name}\"; write 3 to 20 lower-case letters, digits and single hyphens, a letter first, such as perennial-dev."
  }
}

variable "region" {
  description = "AWS region, such as eu-central-1. A zone of it must offer at least two of the GPU types g4dn, g5, g6 and g6e."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is \"${var.region}\", which is no region's name; write one such as us-east-1 or eu-central-1."
  }

  validation {
    condition     = !can(regex("^(cn|us-gov|us-iso[a-z]?|eu-isoe)-", var.region))
    error_message = "region is \"${var.region}\"; the regions of China and of governments are partitions with accounts of their own, without AWS Budgets or without some of the GPU types, and were not tried: take another region."
  }
}

variable "size" {
  description = "small: one of each, to try it and for a team's first model. production: a NAT gateway in each zone, standby database and cache, larger nodes."
  type        = string
  default     = "small"

  validation {
    condition     = contains(["small", "production"], var.size)
    error_message = "size is \"${var.size}\"; it must be small or production."
  }
}

variable "availability_zones" {
  description = "Three zones of the region, such as [\"eu-central-1a\", ...]; null takes the first three."
  type        = list(string)
  default     = null

  validation {
    condition     = var.availability_zones == null || try(length(distinct(var.availability_zones)) == 3 && length(var.availability_zones) == 3, false)
    error_message = "availability_zones has ${try(length(var.availability_zones), 0)} entries; name three different zones, or leave it out to take the region's first three."
  }

  validation {
    condition     = alltrue([for zone in coalesce(var.availability_zones, []) : can(regex("^${var.region}[a-z]$", zone))])
    error_message = "availability_zones is ${jsonencode(coalesce(var.availability_zones, []))}; name zones of ${var.region}, such as ${var.region}a, and no local ones, or leave it out."
  }
}

variable "vpc_cidr" {
  description = "Private IPv4 range of the VPC, /16 to /20; choose one that no network you connect to it uses."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(cidrhost(var.vpc_cidr, 0) == split("/", var.vpc_cidr)[0], false)
    error_message = "vpc_cidr is \"${var.vpc_cidr}\", which is no range; write its first address and its length, such as 10.42.0.0/16."
  }

  validation {
    condition     = try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "vpc_cidr is \"${var.vpc_cidr}\"; its length must be /16 to /20, so that every pod of three zones gets an address."
  }

  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.vpc_cidr))
    error_message = "vpc_cidr is \"${var.vpc_cidr}\", which is not private; take a range of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "api_access_cidrs" {
  description = "IPv4 ranges from which the Kubernetes API may be reached over the internet, such as [\"198.51.100.7/32\"]; [] keeps it inside the VPC."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.api_access_cidrs : can(cidrnetmask(cidr))])
    error_message = "api_access_cidrs is ${jsonencode(var.api_access_cidrs)}; each entry must be an IPv4 range such as 198.51.100.7/32."
  }

  validation {
    condition     = alltrue([for cidr in var.api_access_cidrs : try(tonumber(split("/", cidr)[1]) >= 8, true)])
    error_message = "api_access_cidrs is ${jsonencode(var.api_access_cidrs)}, which opens the Kubernetes API to nearly everybody; name your own addresses (`curl https://checkip.amazonaws.com` says which), or [] for none."
  }

  validation {
    condition     = alltrue([for cidr in var.api_access_cidrs : try(cidrhost(cidr, 0) == split("/", cidr)[0], true)])
    error_message = "api_access_cidrs is ${jsonencode(var.api_access_cidrs)}; write each range with its first address, such as 198.51.100.0/28."
  }

  validation {
    condition     = alltrue([for cidr in var.api_access_cidrs : !can(regex("^(10\\.|127\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", cidr))])
    error_message = "api_access_cidrs is ${jsonencode(var.api_access_cidrs)}, and nobody comes over the internet from a private range; name public addresses (`curl https://checkip.amazonaws.com` says yours), or []: inside the VPC the API always answers."
  }
}

variable "admin_principal_arns" {
  description = "IAM roles or users who administer the cluster. Nobody else can, not even whoever applies this. Of a role that you assume, the role's ARN and not the session's."
  type        = list(string)

  validation {
    condition     = length(var.admin_principal_arns) > 0
    error_message = "admin_principal_arns is empty, and then nobody could use the cluster; name a role or user (`aws sts get-caller-identity` says who you are)."
  }

  validation {
    condition     = alltrue([for arn in var.admin_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]+$", arn))])
    error_message = "admin_principal_arns is ${jsonencode(var.admin_principal_arns)}; each must be a role or user such as arn:aws:iam::123456789012:role/ops. Of arn:aws:sts::123456789012:assumed-role/ops/you, write the role."
  }

  validation {
    condition     = alltrue([for arn in var.admin_principal_arns : !can(regex(":role/AWSReservedSSO_", arn))])
    error_message = "admin_principal_arns is ${jsonencode(var.admin_principal_arns)}; EKS knows a role of IAM Identity Center by its whole path only, such as arn:aws:iam::123456789012:role/aws-reserved/sso.amazonaws.com/eu-central-1/AWSReservedSSO_Admin_0123456789abcdef: `aws iam get-role --role-name NAME --query Role.Arn` says it."
  }
}

variable "alert_emails" {
  description = "Who is told when an alarm goes off or the budget is used up. Each gets a message to confirm first."
  type        = list(string)

  validation {
    condition     = length(var.alert_emails) > 0 && length(var.alert_emails) <= 10
    error_message = "alert_emails has ${length(var.alert_emails)} entries; name one to ten people who should hear of alarms and of the bill."
  }

  validation {
    condition     = alltrue([for address in var.alert_emails : can(regex("^[^@\\s,]+@[^@\\s,]+\\.[^@\\s,]+$", address))])
    error_message = "alert_emails is ${jsonencode(var.alert_emails)}; each must be a mail address such as ops@example.com."
  }
}

variable "monthly_budget_usd" {
  description = "US dollars a month for the whole account; mail goes out at 80 % spent, at 100 % spent and when 100 % is forecast. It stops nothing."
  type        = number

  validation {
    condition     = var.monthly_budget_usd >= 1
    error_message = "monthly_budget_usd is ${var.monthly_budget_usd}; it must be at least 1."
  }
}

variable "gpu_max_nodes" {
  description = "At most so many GPU nodes at once, of spot and of on demand each; null takes the size's own number."
  type        = number
  default     = null

  validation {
    condition     = var.gpu_max_nodes == null || try(var.gpu_max_nodes >= 1 && var.gpu_max_nodes <= 50 && floor(var.gpu_max_nodes) == var.gpu_max_nodes, false)
    error_message = "gpu_max_nodes is ${coalesce(var.gpu_max_nodes, 0)}; it must be a whole number from 1 to 50. GPU nodes are started when a retrain needs one, and none is there otherwise."
  }
}

variable "pipelines" {
  description = "Pipelines whose tables the lake keeps: each has a Glue database of its name, and the workloads may use these and no others."
  type        = set(string)
  default     = ["flights"]

  validation {
    condition     = length(var.pipelines) > 0 && alltrue([for pipeline in var.pipelines : can(regex("^[a-z][a-z0-9_]{0,62}$", pipeline))])
    error_message = "pipelines is ${jsonencode(var.pipelines)}; name at least one, each in lower-case letters, digits and underscores, as its folder below pipelines/."
  }
}

variable "kubernetes_version" {
  description = "Version of EKS. AWS raises it by itself when its standard support ends, rather than charge six times as much; raise it here before that."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.(3[4-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version is \"${var.kubernetes_version}\"; write 1.34 or newer, such as 1.35: AWS makes no cluster of a version whose standard support has ended."
  }
}

variable "deletion_protection" {
  description = "While true, `terraform destroy` is refused before it destroys anything. To destroy: set it to false, apply, destroy."
  type        = bool
  default     = true
}

variable "tags" {
  description = "More tags for every resource, such as a cost centre."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.tags) : !startswith(lower(key), "aws:") && !startswith(key, "perennial:")])
    error_message = "tags has ${jsonencode(keys(var.tags))}; keys that begin with aws: or perennial: are taken, choose others."
  }
}
