"""Databases, a user for each, and the secrets that pods read: `python -m perennial.cluster_accounts`, a job of infra/kubernetes.

RDS changes the password of its own user every week. So nobody but this job uses it: MLflow, Prefect and the ledger have users
of their own, whose passwords are made here, stay, and are in Kubernetes only (docs/decisions/0017).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from perennial.errors import PerennialError, StateError, UnreachableError, UsageError

if TYPE_CHECKING:
    import httpx
    import psycopg

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SETTINGS = "settings"


@dataclass(frozen=True)
class Account:
    """A user of PostgreSQL who owns one database, and where its URL is kept.

    Attributes:
        user: name of the user.
        database: name of the database; empty = the one that is there from the beginning.
        secret: the Kubernetes secret.
        key: of the URL in the secret.
        driver: SQLAlchemy's dialect and driver.
        options: of the URL; the database takes no connection without TLS.
    """

    user: str
    database: str
    secret: str
    key: str
    driver: str = "postgresql+psycopg"
    options: str = "sslmode=require"


ACCOUNTS = (
    Account("ledger", "", SETTINGS, "PERENNIAL_DATABASE_URL"),
    Account("mlflow", "mlflow", "mlflow-database", "url"),
    Account("prefect", "prefect", "prefect-database", "url", "postgresql+asyncpg", "ssl=require"),
)


@dataclass(frozen=True)
class Server:
    """PostgreSQL, and the user who may make users and databases."""

    host: str
    port: int
    database: str
    user: str
    password: str


class KubernetesSecrets:
    """Secrets of the pod's own namespace, by the Kubernetes API."""

    def __init__(self, url: str, namespace: str, client: httpx.Client) -> None:
        self._url = f"{url}/api/v1/namespaces/{namespace}/secrets"
        self._client = client

    def read(self, name: str) -> dict[str, str]:
        """The values of a secret.

        Raises:
            StateError: there is no such secret, or this pod may not read it.
            UnreachableError: the API does not answer.
        """
        data = self._call("GET", name).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def put(self, name: str, values: Mapping[str, str]) -> None:
        """Set some values of a secret; the others stay.

        Raises:
            StateError: there is no such secret, or this pod may not change it.
            UnreachableError: the API does not answer.
        """
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self._call("PATCH", name, {"data": data})

    def _call(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            answer = self._client.request(
                method,
                f"{self._url}/{name}",
                content=None if body is None else json.dumps(body),
                headers={} if body is None else {"Content-Type": "application/merge-patch+json"},
            )
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"the Kubernetes API does not answer ({type(error).__name__}); look at the network policy accounts"
            ) from error
        if not answer.is_success:
            raise StateError(
                f"the Kubernetes API refused {method} of the secret {name!r} with {answer.status_code}; "
                "apply infra/kubernetes, which makes the secret and the role accounts"
            )
        return dict(answer.json())


def make_accounts(server: Server, kept: KubernetesSecrets) -> None:
    """Give every account its user, its database and its URL; one that has them keeps them, password included.

    The URL is kept before the password is set: killed in between, the next run finds it and sets it.

    Raises:
        UnreachableError: PostgreSQL or the Kubernetes API does not answer.
        StateError: one of them refuses.
    """
    import psycopg

    try:
        with psycopg.connect(
            host=server.host,
            port=server.port,
            dbname=server.database,
            user=server.user,
            password=server.password,
            sslmode="require",
            connect_timeout=10,
            autocommit=True,  # CREATE DATABASE is no part of a transaction
        ) as connection:
            for account in ACCOUNTS:
                known = kept.read(account.secret).get(account.key, "")
                password = (urlsplit(known).password if known else None) or secrets.token_urlsafe(32)
                kept.put(account.secret, {account.key: url_of(server, account, password)})
                _make_account(connection, account, account.database or server.database, password)
    except psycopg.OperationalError as error:
        raise UnreachableError(
            f"PostgreSQL at {server.host}:{server.port} takes no connection ({_first_line(error)}); look at its security group, "
            "and whether its password was changed in this very minute"
        ) from error
    except psycopg.Error as error:
        raise StateError(
            f"PostgreSQL at {server.host} refused: {_first_line(error)}; {server.user} must be its owner"
        ) from error


def url_of(server: Server, account: Account, password: str) -> str:
    """The account's SQLAlchemy URL."""
    database = account.database or server.database
    place = f"{account.user}:{quote(password, safe='')}@{server.host}:{server.port}/{database}"
    return f"{account.driver}://{place}?{account.options}"


def online_store_url(secret: Mapping[str, Any]) -> str:
    """PERENNIAL_ONLINE_STORE_URL of a secret with host, port and password."""
    return f"rediss://:{quote(secret['password'], safe='')}@{secret['host']}:{secret['port']}/0"


def _make_account(connection: psycopg.Connection[Any], account: Account, database: str, password: str) -> None:
    from psycopg import sql

    user, name = sql.Identifier(account.user), sql.Identifier(database)
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (account.user,)).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(user))
    # What is sent is what PostgreSQL keeps of it: a statement can come to be in a log that people read.
    kept = connection.pgconn.encrypt_password(password.encode(), account.user.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(user, sql.Literal(kept)))
    # Who gives a database away must be a member of who gets it.
    connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(user))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, user))
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, user))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def main() -> int:
    """Read the environment (addresses.env), make what is missing; the exit status."""
    try:
        _run(os.environ)
    except PerennialError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print("Databases, users and secrets are there.")
    return 0


def _run(environment: Mapping[str, str], account_folder: Path = SERVICE_ACCOUNT) -> None:
    import httpx

    needed = [
        *("DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME", "DATABASE_SECRET_ARN", "ONLINE_STORE_SECRET_ARN"),
        *("ALERT_URLS_SECRET_ARN", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"),
    ]
    if missing := [name for name in needed if not environment.get(name)]:
        raise UsageError(f"{', '.join(missing)} is not set; write addresses.env anew: perennial infra outputs --env")
    owner = json.loads(_secret(environment["DATABASE_SECRET_ARN"]))
    server = Server(
        environment["DATABASE_HOST"],
        int(environment["DATABASE_PORT"]),
        environment["DATABASE_NAME"],
        owner["username"],
        owner["password"],
    )
    settings = {
        "PERENNIAL_ONLINE_STORE_URL": online_store_url(json.loads(_secret(environment["ONLINE_STORE_SECRET_ARN"]))),
        "PERENNIAL_ALERT_URLS": _secret(environment["ALERT_URLS_SECRET_ARN"], may_be_empty=True),
    }
    token, namespace = ((account_folder / name).read_text().strip() for name in ("token", "namespace"))
    api = f"https://{environment['KUBERNETES_SERVICE_HOST']}:{environment['KUBERNETES_SERVICE_PORT']}"
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(verify=str(account_folder / "ca.crt"), headers=headers, timeout=10, trust_env=False) as client:
        kept = KubernetesSecrets(api, namespace, client)
        kept.put(SETTINGS, settings)
        make_accounts(server, kept)


def _secret(arn: str, *, may_be_empty: bool = False) -> str:
    """A secret's text, as it is now; empty where nobody has filled it, if it may be."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    if arn.count(":") < 6:
        raise UsageError(f"{arn!r} is no ARN of a secret; write addresses.env anew: perennial infra outputs --env")
    try:
        # arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME
        client = boto3.client("secretsmanager", region_name=arn.split(":")[3])
        return str(client.get_secret_value(SecretId=arn)["SecretString"])
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if may_be_empty and code == "ResourceNotFoundException":
            return ""
        raise StateError(
            f"Secrets Manager refused {arn} ({code}); look at the role of this pod's service account"
        ) from error
    except BotoCoreError as error:
        raise UnreachableError(
            f"Secrets Manager does not answer ({type(error).__name__}); look at the network policy"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
