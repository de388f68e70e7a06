"""A `prefect` command that waits for its server: `python -m flows.prefect_command URL ARGUMENT...`.

Importing Prefect takes 2 s, so the local stack lets its worker and its deployments do that while the server starts.
"""

from __future__ import annotations

import importlib
import sys
import time

import httpx


def main() -> None:
    """Import Prefect, wait until the URL answers with success, then run `prefect ARGUMENT...`."""
    url, *arguments = sys.argv[1:]
    importlib.import_module("prefect.workers.process" if arguments[0] == "worker" else "prefect.cli.deploy._core")
    from prefect.cli import app

    with httpx.Client(trust_env=False, timeout=10) as client:
        while not _answers(client, url):
            time.sleep(0.1)
    sys.argv = ["prefect", *arguments]
    app()


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
