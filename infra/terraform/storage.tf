# lake: the Iceberg tables. artifacts: models, checkpoints and reports. access-logs: who read the other two.
locals {
  buckets      = toset(["lake", "artifacts", "access-logs"])
  data_buckets = toset(["lake", "artifacts"])
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_144: everything in them can be made again from the event stream and the code; a copy in a second region doubles the bill
  #checkov:skip=CKV2_AWS_62: nobody waits for events of these buckets; the lake's own commits say what is new
  #checkov:skip=CKV_AWS_18: the two buckets with data log to access-logs; the bucket with the logs would log to itself
  #checkov:skip=CKV_AWS_145: S3 writes access logs only with its own keys; the buckets with data have ours
  for_each = local.buckets

  bucket        = "${local.unique_name}-${each.value}"
  force_destroy = !var.deletion_protection
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = local.buckets

  bucket                  = aws_s3_bucket.this[each.value].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.value].id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.value].id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.value].id
  rule {
    # One call to KMS for many objects; a lake of small files would pay for each.
    bucket_key_enabled = contains(local.data_buckets, each.key)
    apply_server_side_encryption_by_default {
      sse_algorithm     = contains(local.data_buckets, each.key) ? "aws:kms" : "AES256"
      kms_master_key_id = contains(local.data_buckets, each.key) ? aws_kms_key.this["data"].arn : null
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.value].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Action    = "s3:*"
        Principal = { AWS = "*" }
        Resource  = [aws_s3_bucket.this[each.value].arn, "${aws_s3_bucket.this[each.value].arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }],
      [for source in local.data_buckets : {
        Sid       = "AccessLogsOf${title(source)}"
        Effect    = "Allow"
        Action    = "s3:PutObject"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Resource  = "${aws_s3_bucket.this[each.value].arn}/${source}/*"
        Condition = {
          ArnEquals    = { "aws:SourceArn" = aws_s3_bucket.this[source].arn }
          StringEquals = { "aws:SourceAccount" = local.account_id }
        }
      } if each.key == "access-logs"]
    )
  })

  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = local.data_buckets

  bucket        = aws_s3_bucket.this[each.value].id
  target_bucket = aws_s3_bucket.this["access-logs"].id
  target_prefix = "${each.value}/"

  depends_on = [aws_s3_bucket_policy.this]
}

locals {
  # Nothing that is current ever goes: `perennial lake expire` decides what the lake needs no more, and leaves old versions behind.
  old_versions_days = { lake = 14, artifacts = 90, access-logs = 1 }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.value].id

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = local.old_versions_days[each.key]
    }
    # What is left of a deleted file when its last version has gone; listings would step over it for ever.
    expiration {
      expired_object_delete_marker = true
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  dynamic "rule" {
    for_each = each.key == "access-logs" ? [90] : []
    content {
      id     = "old-logs"
      status = "Enabled"
      filter {}

      expiration {
        days = rule.value
      }
      abort_incomplete_multipart_upload {
        days_after_initiation = 7
      }
    }
  }

  # Of a retrain that ended, nobody reads how far its fit was.
  dynamic "rule" {
    for_each = each.key == "artifacts" ? [14] : []
    content {
      id     = "old-checkpoints"
      status = "Enabled"
      filter {
        prefix = "checkpoints/"
      }

      expiration {
        days = rule.value
      }
      abort_incomplete_multipart_upload {
        days_after_initiation = 7
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

# The Iceberg catalog. Tables are made by the pipelines; a database that is destroyed takes what is known of its tables with it.
resource "aws_glue_catalog_database" "pipeline" {
  for_each = var.pipelines

  name         = each.value
  description  = "Tables of the pipeline ${each.value} of ${var.name}"
  location_uri = "${local.lake_warehouse}/${each.value}.db"
}

locals {
  lake_warehouse = "s3://${aws_s3_bucket.this["lake"].id}/lake"
}
