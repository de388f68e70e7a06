"""Addresses with a user and a password in them."""

from __future__ import annotations

import pytest

from perennial.connect import connect_prefect
from perennial.errors import UnreachableError
from perennial.settings import Settings
from perennial.web_addresses import user_of, without_user


@pytest.mark.parametrize(
    ("url", "shown", "user"),
    [
        ("https://ann:s%40cret@host:5000/a@b?c=@", "https://host:5000/a@b?c=@", ("ann", "s@cret")),
        ("http://ann@host", "http://host", ("ann", "")),
        ("http://ann:a@b:c@host/", "http://host/", ("ann", "a@b:c")),
        ("ann:secret@host:9091", "host:9091", ("ann", "secret")),
        ("http://ann:secret@[::1", "http://[::1", ("ann", "secret")),
        ("http://host/@me", "http://host/@me", None),
        ("127.0.0.1:9091", "127.0.0.1:9091", None),
        ("", "", None),
    ],
)
def test_an_address_is_parted_from_its_user(url: str, shown: str, user: tuple[str, str] | None) -> None:
    assert (without_user(url), user_of(url)) == (shown, user)


def test_a_prefect_server_that_is_away_is_named_without_its_password(free_port: int) -> None:
    with pytest.raises(UnreachableError) as told:
        connect_prefect(Settings(prefect_api_url=f"http://ann:secret@127.0.0.1:{free_port}/api"))
    assert f"answers at http://127.0.0.1:{free_port}/api (" in str(told.value)
    assert "secret" not in str(told.value)
