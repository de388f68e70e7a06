"""The TCP ports of the local stack: the usual ones, free ones, and who holds one that is taken."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, fields

from perennial.errors import UsageError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class StackPorts:
    """One TCP port on the loopback address for each service of the local stack."""

    kafka: int = 9092
    prefect: int = 4200
    mlflow: int = 5000
    scoring: int = 8000


SERVICE_NAMES = tuple(field.name for field in fields(StackPorts))


def free_ports() -> StackPorts:
    """Four different ports that nobody uses now; held open together, so that no two are the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in SERVICE_NAMES]
        for each in sockets:
            each.bind((HOST, 0))
        return StackPorts(*(each.getsockname()[1] for each in sockets))


def prefer(wanted: StackPorts) -> StackPorts:
    """`wanted`, with a free port in place of each one that is in use."""
    spare = free_ports()
    return StackPorts(
        *(getattr(wanted if is_free(getattr(wanted, name)) else spare, name) for name in SERVICE_NAMES),
    )


def check_free(ports: StackPorts, services: Collection[str] = SERVICE_NAMES) -> None:
    """Make sure that every port of `services` can be listened on.

    Raises:
        UsageError: a port is in use, out of range, or given to two services; the sentence names the port, its holder
            where the operating system tells, and the option that changes it.
    """
    seen: dict[int, str] = {}
    for name in (name for name in SERVICE_NAMES if name in services):
        port = getattr(ports, name)
        option = f"--{name}-port N"
        if not 0 < port < 65_536:
            raise UsageError(f"port {port} for {name} is not between 1 and 65535; pass {option}")
        if port in seen:
            raise UsageError(f"port {port} is given to both {seen[port]} and {name}; pass {option}")
        seen[port] = name
        if not is_free(port):
            holder = holder_of(port)
            by = f" by {holder}; stop it or pass {option}" if holder else f"; stop what holds it or pass {option}"
            raise UsageError(f"port {port} for {name} is in use{by}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        # As servers do: a connection that is only winding down does not hold its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """The process that listens on a port, as `name (pid N)`; empty where the operating system does not tell."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""
