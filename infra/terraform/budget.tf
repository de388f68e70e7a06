# Of the whole account: a budget of a tag sees nothing until somebody activates the tag in the billing console.
locals {
  budget_notices = {
    "80 % spent"   = { type = "ACTUAL", percent = 80 }
    "all spent"    = { type = "ACTUAL", percent = 100 }
    "all forecast" = { type = "FORECASTED", percent = 100 }
  }
}

resource "aws_budgets_budget" "monthly" {
  name         = "${var.name}-monthly"
  budget_type  = "COST"
  limit_amount = tostring(var.monthly_budget_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  dynamic "notification" {
    for_each = local.budget_notices
    content {
      comparison_operator        = "GREATER_THAN"
      notification_type          = notification.value.type
      threshold                  = notification.value.percent
      threshold_type             = "PERCENTAGE"
      subscriber_email_addresses = var.alert_emails
    }
  }
}
