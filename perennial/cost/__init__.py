"""What it costs: a month of what Terraform makes, and a retrain on spot and on demand."""
