"""AWS: who this process is there, and in which region."""

from __future__ import annotations

import os

from perennial.doctor.findings import Finding, failed, passed
from perennial.settings import Settings

IAM = "AWS_MSK_IAM"


def needs_aws(settings: Settings) -> bool:
    """Whether anything of the settings is in AWS."""
    return bool(
        settings.lake_warehouse.startswith("s3:")
        or settings.lake_catalog_uri.startswith("glue:")
        or settings.checkpoints.startswith("s3:")
        or settings.database_secret_arn
        or settings.online_store_secret_arn
        or settings.kafka_options.get("sasl_mechanism") == IAM
    )


def identity(settings: Settings) -> Finding:
    """Whose credentials these are, and whether the region is the lake's."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    session = boto3.Session()
    region = session.region_name
    glue = settings.lake_catalog_uri.removeprefix("glue://") if settings.lake_catalog_uri.startswith("glue:") else ""
    if region is None and settings.kafka_options.get("sasl_mechanism") == IAM:
        only = " (AWS_REGION alone is not looked at)" if os.environ.get("AWS_REGION") else ""
        return failed(f"no region is set{only}, and Kafka's IAM needs one", "set AWS_DEFAULT_REGION")
    quick = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
    try:
        who = session.client("sts", region_name=region or glue or "us-east-1", config=quick).get_caller_identity()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return failed(f"AWS does not take these credentials ({code})", "sign in anew: aws sso login, or AWS_PROFILE")
    except (ConnectionError, HTTPClientError) as error:
        mend = "see the network: AWS_ENDPOINT_URL, HTTPS_PROXY, the way out of this subnet"
        return failed(f"AWS does not answer ({type(error).__name__})", mend)
    except BotoCoreError as error:
        return failed(
            f"AWS could not be asked ({type(error).__name__})",
            "give credentials: aws sso login, AWS_PROFILE, or the pod's service account",
        )
    told = f"{who['Arn']} in {region or 'no region'}"
    if region and glue and region != glue:
        mend = f"set AWS_DEFAULT_REGION to {glue}, or mend PERENNIAL_LAKE_CATALOG_URI"
        return failed(f"{told}, and the lake's catalog is in {glue}", mend)
    return passed(told)
