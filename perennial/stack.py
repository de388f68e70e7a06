"""The local stack: Kafka, Prefect with a worker, MLflow and the scoring service as child processes of one owner.

    with start_stack(settings(), StackPorts()) as stack:
        stack.wait()

Whatever ends the owner ends the stack: leaving the block, Ctrl-C, SIGTERM; after SIGKILL the kernel ends the children
(Linux), and the next start on the same home stops what is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType

import httpx

from perennial.addresses import FIELDS, child_environment, given_addresses, local_addresses, variable
from perennial.claim import Claim
from perennial.deploy import WORK_POOL, make_work_pool, worker_is_online, write_deployments
from perennial.errors import StageError
from perennial.ports import HOST, SERVICE_NAMES, StackPorts, check_free
from perennial.processes import Child, spawn, stop_trees, tail
from perennial.services import WHAT, Service, command
from perennial.settings import STACK_FILE, Settings
from perennial.web_addresses import without_user

PROJECT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 180.0


def start_stack(
    settings: Settings,
    ports: StackPorts,
    *,
    schedules: bool = True,
    project: Path = PROJECT,
    on_ready: Callable[[str, float], None] | None = None,
) -> Stack:
    """Start every part whose address is not given, and wait until all of them answer.

    Call it from a thread that stays until the end, the main one where signals are to stop the stack.

    Args:
        settings: the state root, and the addresses that are given.
        ports: where the parts listen.
        schedules: whether deployments run by their schedules; False deploys them with every schedule inactive.
        project: the folder with prefect.yaml and what its entrypoints name.
        on_ready: is told the name of each part once it answers, and after how many seconds that was.

    Raises:
        StateError: another stack runs on this home, or the home cannot be written.
        UsageError: a port is in use.
        StageError: a part ended or did not answer in time; the sentence has the last lines of its log.
    """
    claim = Claim(settings.root, os.getpid())
    try:
        stop_trees(claim.left_over)
        claim.record([])
        given = given_addresses(settings)
        check_free(ports, [name for name in SERVICE_NAMES if FIELDS[name] not in given])
    except BaseException:
        claim.release()
        raise
    stack = Stack(settings, ports, given, claim, project, on_ready or _say_nothing)
    try:
        stack._start(schedules)
    except BaseException:
        stack.stop()
        raise
    return stack


class Stack:
    """A running local stack; made by `start_stack`.

    Attributes:
        addresses: where everything is, by field of Settings, given addresses included.
    """

    def __init__(
        self,
        settings: Settings,
        ports: StackPorts,
        given: Mapping[str, str],
        claim: Claim,
        project: Path,
        on_ready: Callable[[str, float], None],
    ) -> None:
        self.addresses: dict[str, str] = {**local_addresses(ports), **given}
        self._root = settings.root
        self._ports = ports
        self._given = given
        self._claim = claim
        self._project = project
        self._on_ready = on_ready
        self._environment = child_environment(settings, self.addresses, own_prefect="prefect_api_url" not in given)
        self._children: list[Child] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._stopped = False
        self._http = httpx.Client(trust_env=False, timeout=10)

    @property
    def services(self) -> tuple[Service, ...]:
        """What runs where, given addresses included."""
        children = {child.name: child for child in self._children}
        lines: list[Service] = []
        for name, what in WHAT.items():
            address = without_user(self.addresses[FIELDS.get(name, "prefect_api_url")]).removesuffix("/api")
            if name in children:
                lines.append(Service(name, what, address, children[name].key.pid, children[name].log))
            elif name in FIELDS:
                lines.append(Service(name, f"{what}; given by {variable(FIELDS[name])}", address))
        return tuple(lines)

    def wait(self, poll_s: float = 0.5) -> None:
        """Stay until the stack is stopped.

        Raises:
            StageError: a service ended by itself; the sentence names it, its exit status and the last lines of its log.
        """
        while not self._stopped:
            self._check_alive()
            time.sleep(poll_s)

    def stop(self) -> None:
        """Stop every process in the reverse order of their start; a second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        # From here on an impatient second Ctrl-C must not leave half of them running.
        self._on_signals(signal.SIG_IGN)
        # Backwards, and each whatever became of the ones before: the last child is the first to be stopped, and a file
        # that cannot be removed or written is told when everything else has ended.
        with ExitStack() as ending:
            for number, handler in self._handlers.items():
                ending.callback(signal.signal, number, handler if handler is not None else signal.SIG_DFL)
            ending.callback(self._http.close)
            ending.callback(self._claim.release)
            ending.callback(self._claim.record, [])
            ending.callback((self._root / STACK_FILE).unlink, missing_ok=True)
            for child in self._children:
                ending.callback(stop_trees, [child.key])

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, schedules: bool) -> None:
        self._on_signals(_exit)
        begin = time.monotonic()
        unready = {name: probe for name, probe in self._probes().items() if FIELDS[name] not in self._given}
        for name in unready:
            self._spawn(name, command(name, self._root, self._ports))
        # At once: a command that is run meanwhile names these addresses and not the default ones.
        self._write_file(unready)
        # What runs on Prefect is started once a core is free, and makes its imports while the server still starts.
        waiting = "prefect" in unready
        while unready:
            for name in [name for name, ready in unready.items() if ready()]:
                del unready[name]
                self._write_file(unready)
                self._on_ready(name, time.monotonic() - begin)
                if name == "prefect":
                    make_work_pool(self._http, self.addresses["prefect_api_url"])
            if waiting and unready.keys() <= {"prefect"}:
                waiting = False
                unready["worker"] = self._start_worker(schedules)
                self._write_file(unready)
            self._check_alive()
            if time.monotonic() - begin > START_LIMIT_S:
                logs = self._root / "logs"
                raise StageError(
                    f"{', '.join(unready)} did not answer within {START_LIMIT_S:.0f} s; see the logs in {logs}"
                )
            time.sleep(0.1)

    def _probes(self) -> dict[str, Callable[[], bool]]:
        def answers(url: str) -> Callable[[], bool]:
            def probe() -> bool:
                try:
                    return self._http.get(url).is_success
                except httpx.HTTPError:
                    return False

            return probe

        def accepts() -> bool:
            try:
                socket.create_connection((HOST, self._ports.kafka), timeout=1).close()
            except OSError:
                return False
            return True

        # Prefect first: its start is the longest, and the worker and the deployments wait for it.
        return {
            "prefect": answers(f"{self.addresses['prefect_api_url']}/health"),
            "mlflow": answers(f"{self.addresses['mlflow_tracking_uri']}/health"),
            "scoring": answers(f"{self.addresses['scoring_url']}/health"),
            "kafka": accepts,
        }

    def _start_worker(self, schedules: bool) -> Callable[[], bool]:
        """Start the process that deploys and then runs flows; the answer tells whether it has come so far."""
        deployments = self._root / "prefect" / "prefect.yaml"
        write_deployments(self._project / "prefect.yaml", deployments, schedules=schedules)
        name = f"perennial-{os.getpid()}"
        self._spawn("worker", [sys.executable, "-m", "flows.prefect_worker", WORK_POOL, name, str(deployments)])
        return lambda: worker_is_online(self._http, self.addresses["prefect_api_url"], name)

    def _spawn(self, name: str, command: list[str]) -> Child:
        log = self._root / "logs" / f"{name}.log"
        child = spawn(name, command, environment=self._environment, log=log, directory=self._project)
        self._children.append(child)
        self._claim.record(child.key for child in self._children)
        return child

    def _check_alive(self) -> None:
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                last = tail(child.log)
                raise StageError(f"{child.name} ended by itself with status {status}; end of {child.log}:\n{last}")

    def _write_file(self, unready: Container[str]) -> None:
        """Tell other processes where everything is, and what of it answers by now."""
        file = self._root / STACK_FILE
        children = [{"name": c.name, "ready": c.name not in unready, **asdict(c.key)} for c in self._children]
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"pid": os.getpid(), "addresses": self.addresses, "children": children}, indent=2))
        fresh.replace(file)

    def _on_signals(self, handler: Callable[[int, FrameType | None], object] | int) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            before = signal.getsignal(number)
            # A caller that ignores SIGHUP (nohup) or handles SIGINT itself keeps that until the stop begins.
            if handler is _exit and (number == signal.SIGINT or before == signal.SIG_IGN):
                continue
            self._handlers.setdefault(number, before)
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say_nothing(_name: str, _seconds: float) -> None:
    return
