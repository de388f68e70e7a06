"""`python -m serving`: the scoring service on one uvicorn worker. More replicas are more processes."""

from __future__ import annotations

import argparse
import socket
import sys

import uvicorn

from perennial.errors import PerennialError, UsageError
from perennial.settings import settings
from serving.app import create_app

# How long a thread that wants the interpreter waits while another one computes. Python's 5 ms is many times what a model
# takes for a row: it would be most of every latency, and what the judge of a canary gets to see.
SWITCH_INTERVAL_S = 0.0005


def main() -> int:
    """Serve until SIGINT or SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="Answer scoring requests over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    args = parser.parse_args()
    try:
        listener = _listen(args.host, args.port)
        app = create_app(settings())
    except PerennialError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    server.run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port in use is said at once and in one sentence."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error}); choose another with --host and --port") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
