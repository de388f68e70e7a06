"""The local stack's Prefect worker: `python -m flows.prefect_worker POOL NAME PREFECT_FILE`.

One process waits for the server, deploys, and then works: importing Prefect and the flows takes 3 s, which pass while the
server starts, and are paid once. It does not poll while it deploys: on SQLite the two now and then locked each other out for
the 60 s that Prefect waits for a lock.

It also gives the server a block that says where results go, which perennial.addresses makes the default. Without a
default, every flow run asks the server for it two or three times, each time by a new client with an SSL context of its
own: a sixth of a short flow run.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import httpx

from perennial.addresses import RESULTS_BLOCK


def main() -> int:
    """Wait until the work pool is there, deploy what PREFECT_FILE names, then run flows until SIGTERM."""
    pool, name, prefect_file = sys.argv[1:]
    # Imported for the time they take: the commands below would import them once the server is there.
    import prefect.cli.deploy._core
    import prefect.workers.process  # noqa: F401
    import yaml
    from prefect.filesystems import LocalFileSystem
    from prefect.settings import get_current_settings

    for deployment in yaml.safe_load(Path(prefect_file).read_text())["deployments"]:
        if ":" not in deployment["entrypoint"]:
            importlib.import_module(deployment["entrypoint"].rpartition(".")[0])
    url = f"{get_current_settings().api.url}/work_pools/{pool}"
    with httpx.Client(trust_env=False, timeout=10) as client:
        while not _answers(client, url):
            time.sleep(0.1)
    settings = get_current_settings()
    LocalFileSystem(basepath=str(settings.results.local_storage_path)).save(RESULTS_BLOCK, overwrite=True)
    deployed = run_prefect("--no-prompt", "deploy", "--all", "--prefect-file", prefect_file)
    return deployed or run_prefect("worker", "start", "--pool", pool, "--type", "process", "--name", name)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


def run_prefect(*arguments: str) -> int:
    """Run a `prefect` command in this process; its exit status."""
    from prefect.cli import app

    sys.argv = ["prefect", *arguments]
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
