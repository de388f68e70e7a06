data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394: a subnet stays in the zone it was made in, whatever this list says later
  state = "available"

  # EKS takes no cluster in these, whatever letter an account has for them.
  exclude_zone_ids = ["use1-az3", "usw1-az2", "cac1-az3"]

  # Local zones and zones that have to be asked for have neither the GPU types nor the managed stores.
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

locals {
  zones = coalesce(var.availability_zones, slice(sort(data.aws_availability_zones.available.names), 0, min(3, length(data.aws_availability_zones.available.names))))
  # A /16 makes private subnets of /18, where every pod has an address of its own, and public ones of /22 at its end.
  private_cidrs = [for index in range(3) : cidrsubnet(var.vpc_cidr, 2, index)]
  public_cidrs  = [for index in range(3) : cidrsubnet(cidrsubnet(var.vpc_cidr, 2, 3), 4, index)]
}

resource "aws_vpc" "this" {
  cidr_block           = var.vpc_cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = { Name = var.name }

  lifecycle {
    precondition {
      condition     = length(local.zones) == 3
      error_message = "${var.region} offers this account ${length(local.zones)} zones, and three are needed: the event stream keeps a copy in each. Choose a region with three."
    }
  }
}

# Nobody uses it, so it lets nothing through.
resource "aws_default_security_group" "unused" {
  vpc_id = aws_vpc.this.id
}

resource "aws_subnet" "private" {
  count = 3

  vpc_id            = aws_vpc.this.id
  availability_zone = local.zones[count.index]
  cidr_block        = local.private_cidrs[count.index]
  tags              = { Name = "${var.name}-private-${count.index}", "kubernetes.io/role/internal-elb" = "1" }

  lifecycle {
    ignore_changes = [availability_zone] # else a zone that AWS adds, or closes for a while, would move everything in it
  }
}

# Only NAT gateways and load balancers are here; nothing gets a public address by being in it.
resource "aws_subnet" "public" {
  count = 3

  vpc_id            = aws_vpc.this.id
  availability_zone = local.zones[count.index]
  cidr_block        = local.public_cidrs[count.index]
  tags              = { Name = "${var.name}-public-${count.index}", "kubernetes.io/role/elb" = "1" }

  lifecycle {
    ignore_changes = [availability_zone] # else a zone that AWS adds, or closes for a while, would move everything in it
  }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = var.name }
}

resource "aws_eip" "nat" {
  count = local.size.nat_gateways

  domain = "vpc"
  tags   = { Name = "${var.name}-nat-${count.index}" }

  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  count = local.size.nat_gateways

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.public[count.index].id
  tags          = { Name = "${var.name}-${count.index}" }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = "${var.name}-public" }
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "public" {
  count = 3

  route_table_id = aws_route_table.public.id
  subnet_id      = aws_subnet.public[count.index].id
}

resource "aws_route_table" "private" {
  count = 3

  vpc_id = aws_vpc.this.id
  tags   = { Name = "${var.name}-private-${count.index}" }
}

resource "aws_route" "nat" {
  count = 3

  route_table_id         = aws_route_table.private[count.index].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[count.index % local.size.nat_gateways].id
}

resource "aws_route_table_association" "private" {
  count = 3

  route_table_id = aws_route_table.private[count.index].id
  subnet_id      = aws_subnet.private[count.index].id
}

# The lake's bytes and the layers of images, which ECR keeps in S3, do not pass the NAT gateway, whose gigabytes cost.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = aws_route_table.private[*].id
  tags              = { Name = "${var.name}-s3" }
}

resource "aws_flow_log" "vpc" {
  vpc_id          = aws_vpc.this.id
  traffic_type    = "REJECT" # what was refused is what one looks for; all of it would be a multiple to store
  log_destination = aws_cloudwatch_log_group.this["flow"].arn
  iam_role_arn    = aws_iam_role.flow_log.arn
  tags            = { Name = var.name }
}

resource "aws_iam_role" "flow_log" {
  name = "${var.name}-flow-log"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "vpc-flow-logs.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "flow_log" {
  name = "write-flow-logs"
  role = aws_iam_role.flow_log.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
      Resource = ["${aws_cloudwatch_log_group.this["flow"].arn}", "${aws_cloudwatch_log_group.this["flow"].arn}:*"]
    }]
  })
}
