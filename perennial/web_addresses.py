"""Addresses that may carry a user and a password, `https://user:password@host`: what is shown, and who signs in."""

from __future__ import annotations

import re
from urllib.parse import unquote

_WITH_USER = re.compile(r"((?:[a-z][a-z0-9+.-]*://)?)([^/?#]*)@(.*)", re.IGNORECASE | re.DOTALL)


def without_user(url: str) -> str:
    """The address as anybody may see it."""
    found = _WITH_USER.fullmatch(url)
    return f"{found[1]}{found[3]}" if found else url


def user_of(url: str) -> tuple[str, str] | None:
    """The user and password in an address, percent-codes resolved; None where there are none."""
    found = _WITH_USER.fullmatch(url)
    if not found:
        return None
    user, _, password = found[2].partition(":")
    return unquote(user), unquote(password)
