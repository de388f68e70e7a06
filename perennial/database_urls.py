"""Addresses of databases as messages may show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

STARS = "***"


def shown(url: URL) -> str:
    """The address without its passwords: the one before the host and those among the options, such as sslpassword."""
    hidden = {name: STARS if "password" in name.lower() else value for name, value in url.query.items()}
    return url.set(query=hidden).render_as_string(hide_password=True).replace("%2A" * len(STARS), STARS)
