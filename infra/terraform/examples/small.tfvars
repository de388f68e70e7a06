# To try it, or for a team's first model: terraform apply -var-file=examples/small.tfvars
# Change the lines up to the blank one; the account number and addresses are nobody's.
region               = "us-east-1"
api_access_cidrs     = ["198.51.100.7/32"]
admin_principal_arns = ["arn:aws:iam::123456789012:role/ops"]
alert_emails         = ["ops@example.com"]

size               = "small"
monthly_budget_usd = 1300
