"""Which Prefect server a command's flow run goes to."""

from __future__ import annotations

import os
from http.client import HTTPException
from urllib.request import urlopen

from perennial.addresses import QUIET
from perennial.errors import UnreachableError
from perennial.settings import Settings
from perennial.web_addresses import without_user

PROBE_S = 2.0


def connect_prefect(settings: Settings) -> None:
    """Point Prefect at its server. Call it before prefect is imported, which reads its environment once.

    An address that was given, or the running stack's, must answer. Without either, Prefect runs a server of its own for
    the length of the command, and keeps its database below the state root.

    Raises:
        UnreachableError: the server does not answer.
    """
    # What went wrong is told once, as a sentence, by the command; the server keeps the log with the traceback.
    quiet = {**QUIET, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    if "prefect_api_url" in settings.model_fields_set:
        # The probe needs no user, and its errors would repeat the password.
        address = without_user(settings.prefect_api_url)
        try:
            with urlopen(f"{address}/health", timeout=PROBE_S):
                pass
        except (OSError, ValueError, HTTPException) as error:  # ValueError: it is no URL
            raise UnreachableError(
                f"no Prefect server answers at {address} ({error}); start one with `perennial up` and "
                "wait until it is ready, or set PREFECT_API_URL"
            ) from error
        os.environ["PREFECT_API_URL"] = settings.prefect_api_url
    else:
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
        # Prefect gives it 20 s, which a busy machine does not always keep.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
        os.environ.setdefault("PREFECT_HOME", str(settings.root / "prefect"))
