# What differs between the sizes, in one place. GPU types of one size have the same number of processors and GPUs, and the first
# has the least memory: the autoscaler takes it as the picture of a node that is not there yet. The least number of system nodes is
# the same in both: how many there are is the autoscaler's, and EKS refuses a group whose least is more than that.
locals {
  sizes = {
    small = {
      nat_gateways          = 1
      system_instance_types = ["t3.xlarge"]
      system_nodes          = { min = 2, desired = 2, max = 4 }
      gpu_instance_types    = ["g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6e.xlarge"]
      gpu_max_nodes         = 2
      database_class        = "db.t4g.medium"
      database_gb           = 20
      database_max_gb       = 100
      database_standby      = false
      database_backup_days  = 7
      online_store_class    = "cache.t4g.small"
      online_store_replicas = 0
      broker_class          = "kafka.m7g.large" # of those that MSK takes for a new KRaft cluster the smallest; kafka.t3.small is refused
      broker_gb             = 50
      log_days              = 30
    }
    production = {
      nat_gateways          = 3
      system_instance_types = ["m6i.2xlarge"]
      system_nodes          = { min = 2, desired = 3, max = 9 }
      gpu_instance_types    = ["g4dn.2xlarge", "g5.2xlarge", "g6.2xlarge", "g6e.2xlarge"]
      gpu_max_nodes         = 8
      database_class        = "db.m6g.large"
      database_gb           = 100
      database_max_gb       = 1000
      database_standby      = true
      database_backup_days  = 30
      online_store_class    = "cache.r7g.large"
      online_store_replicas = 2
      broker_class          = "kafka.m7g.large"
      broker_gb             = 500
      log_days              = 365
    }
  }

  size       = local.sizes[var.size]
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  # Bucket names are shared by all of AWS's customers.
  unique_name = "${var.name}-${local.account_id}-${var.region}"
  # The Kubernetes namespace of every workload.
  namespace = "perennial"
}
