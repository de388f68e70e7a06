# Who reaches the stores: the nodes, and who is given their group (output store_clients_security_group_id), on each store's own port,
# and nobody else. The stores reach nothing.
locals {
  stores = {
    database     = { port = 5432, description = "PostgreSQL" }
    online-store = { port = 6379, description = "Redis over TLS" }
    stream       = { port = 9098, description = "Kafka over TLS with IAM" }
  }
}

resource "aws_security_group" "store" {
  for_each = local.stores

  name        = "${var.name}-${each.key}"
  description = "${each.value.description} of ${var.name}"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = "${var.name}-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "store" {
  for_each = local.stores

  security_group_id            = aws_security_group.store[each.key].id
  referenced_security_group_id = aws_security_group.node.id
  description                  = "${each.value.description} from the nodes"
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
}
