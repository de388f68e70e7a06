"""Secrets of AWS Secrets Manager, read when they are needed: who keeps a password for good is locked out when it changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection

from perennial.errors import StateError, UnreachableError

CONNECT_S, READ_S = 3, 5
KEPT_S = 300.0
"""A pool that opens many connections asks once in five minutes."""
FRESH_S = 5.0
"""Whoever is refused with a password asks anew, but not more often than this: a database that is down refuses all the time."""


class Secret:
    """A JSON object in a secret. Safe to share between threads.

    Args:
        arn: of the secret; its region is in it.
        setting: the setting that holds the ARN, for messages.
        names: of the values that it must have.
        clock: seconds that only grow.
    """

    def __init__(
        self, arn: str, setting: str, names: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._arn = arn
        self._setting = setting
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        self._read_at = -float("inf")
        self._failed_at = -float("inf")

    def read(self, at_most_s: float = KEPT_S) -> dict[str, str]:
        """The values that it must have, read no longer ago than `at_most_s` seconds.

        While Secrets Manager does not answer, those that were read before are given, however old: most likely they hold,
        and it is asked again after `FRESH_S` seconds, not by each thread that waits.

        Raises:
            StateError: there is no such secret, no right to read it, or it holds something else.
            UnreachableError: Secrets Manager does not answer, or there are no credentials for it, and nothing was read.
        """
        with self._lock:
            now = self._clock()
            if now - self._read_at >= at_most_s and now - self._failed_at >= FRESH_S:
                try:
                    self._held = self._parsed(self._ask())
                    self._read_at = self._clock()
                except UnreachableError:
                    if not self._held:
                        raise
                    self._failed_at = self._clock()
            return dict(self._held)

    def _ask(self) -> str:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        parts = self._arn.split(":")
        region = parts[3] if len(parts) > 5 else None
        quick = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"total_max_attempts": 2})
        try:
            client = boto3.Session().client("secretsmanager", region_name=region, config=quick)
            return str(client.get_secret_value(SecretId=self._arn).get("SecretString", ""))
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 or "Throttl" in code:
                raise UnreachableError(
                    f"Secrets Manager does not answer for {self._arn} ({code}); try again, or see {self._setting}"
                ) from error
            raise StateError(
                f"Secrets Manager refused the secret {self._arn} ({code}); let this role read it and its KMS key, or see "
                f"{self._setting}"
            ) from error
        except (BotoCoreError, ValueError) as error:
            raise UnreachableError(
                f"Secrets Manager could not be asked for {self._arn} ({type(error).__name__}); see {self._setting}, "
                "the AWS credentials and the network"
            ) from error

    def _parsed(self, text: str) -> dict[str, str]:
        try:
            told = json.loads(text)
            return {name: str(told[name]) for name in self._names}
        except (ValueError, LookupError, TypeError):
            # Without the cause: it may repeat what the secret holds.
            raise StateError(
                f"the secret {self._arn} is no JSON object with {' and '.join(self._names)}; see {self._setting}"
            ) from None
