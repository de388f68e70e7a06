"""Objects in S3, by boto3: its keys come from the environment, a profile, or the pod's identity.

fsspec reads s3:// by s3fs, whose aiobotocore wants another botocore than boto3 has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from perennial.errors import UnreachableError, UsageError

T = TypeVar("T")

ABSENT = frozenset({"NoSuchKey", "404"})


def read_object(uri: str) -> bytes:
    """The bytes of an s3:// address.

    Raises:
        FileNotFoundError: there is no such object.
        UsageError: there is no such bucket, or no right to read it.
        UnreachableError: S3 does not answer.
    """
    bucket, key = _parts(uri)
    return bytes(_asking(uri, lambda: _client().get_object(Bucket=bucket, Key=key)["Body"].read()))


def write_object(file: Path, uri: str) -> None:
    """Copy a file to an s3:// address, over what is there.

    Raises:
        UsageError: there is no such bucket, or no right to write it.
        UnreachableError: S3 does not answer.
    """
    bucket, key = _parts(uri)
    _asking(uri, lambda: _client().upload_file(str(file), bucket, key))


def write_bytes(content: bytes, uri: str) -> None:
    """Put bytes at an s3:// address, over what is there.

    Raises:
        UsageError: there is no such bucket, or no right to write it.
        UnreachableError: S3 does not answer.
    """
    bucket, key = _parts(uri)
    _asking(uri, lambda: _client().put_object(Bucket=bucket, Key=key, Body=content))


def _parts(uri: str) -> tuple[str, str]:
    # Not as a web address: ? and # are letters of a key.
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.lstrip("/")


@lru_cache(maxsize=1)
def _client() -> Any:
    import boto3
    from botocore.config import Config

    # A session of its own: threads must not make clients of the one that they share.
    quick = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard"})
    return boto3.Session().client("s3", config=quick)


def _asking(uri: str, ask: Callable[[], T]) -> T:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask()
    except S3UploadFailedError as error:
        cause = error.__context__
        raise _told(uri, cause if isinstance(cause, ClientError) else error) from error
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") in ABSENT:
            raise FileNotFoundError(uri) from error
        raise _told(uri, error) from error


def _told(uri: str, error: Exception) -> UsageError | UnreachableError:
    from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError, ParamValidationError

    if isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
        return UsageError(
            f"S3 refuses {uri} ({error.response['Error']['Code']}); look at the bucket's name and your rights"
        )
    if isinstance(error, (NoCredentialsError, NoRegionError, ParamValidationError)):
        return UsageError(
            f"S3 cannot be asked for {uri} ({error}); set AWS_REGION and give this program keys or a role"
        )
    return UnreachableError(f"S3 does not answer for {uri} ({error}); look at the network and try again")
