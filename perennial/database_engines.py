"""Connections to SQL databases: the one place that opens the ledger's engine, and knows where its password comes from."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from perennial.aws_secrets import FRESH_S, Secret
from perennial.errors import UsageError

SECRET_SETTING = "PERENNIAL_DATABASE_SECRET_ARN"


def open_engine(url: str, secret_arn: str = "", secret: Secret | None = None) -> sa.Engine:
    """An engine that looks at a pooled connection before it is used.

    Args:
        url: SQLAlchemy's.
        secret_arn: secret of AWS with `username` and `password`, asked for whenever a connection is opened; not looked at
            where the URL has a password. RDS changes it every week.
        secret: that secret, where it is open already.

    Raises:
        UsageError: a secret for a database in a file.
        sqlalchemy.exc.ArgumentError: the URL is none; also NoSuchModuleError, or ImportError without its driver.
    """
    engine = sa.create_engine(url, pool_pre_ping=True)
    if not secret_arn or engine.url.password is not None:
        return engine
    if engine.dialect.name == "sqlite":
        raise UsageError(
            f"{SECRET_SETTING} is set, but PERENNIAL_DATABASE_URL is a file, which has no password; set it to "
            "postgresql+psycopg://HOST/NAME, or unset the secret"
        )
    kept = secret or Secret(secret_arn, SECRET_SETTING, ("username", "password"))

    def connect(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        login = _login(kept.read())
        try:
            return dialect.connect(*arguments, **{**options, **login})
        except dialect.loaded_dbapi.OperationalError:
            # Its code does not tell a wrong password from other refusals; a password that has changed does.
            fresh = _login(kept.read(FRESH_S))
            if fresh == login:
                raise
            return dialect.connect(*arguments, **{**options, **fresh})

    sa.event.listen(engine, "do_connect", connect)
    return engine


def _login(told: dict[str, str]) -> dict[str, str]:
    return {"user": told["username"], "password": told["password"]}
