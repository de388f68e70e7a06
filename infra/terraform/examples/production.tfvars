# Standby stores, a NAT gateway in each zone, larger nodes: terraform apply -var-file=examples/production.tfvars
# Change the lines up to the blank one; the account number and addresses are nobody's.
region               = "eu-central-1"
api_access_cidrs     = ["198.51.100.0/28"]
admin_principal_arns = ["arn:aws:iam::123456789012:role/ops", "arn:aws:iam::123456789012:role/deploy"]
alert_emails         = ["ops@example.com", "finance@example.com"]

name               = "perennial-prod"
size               = "production"
monthly_budget_usd = 6000
gpu_max_nodes      = 8
tags               = { cost-centre = "ml" }
