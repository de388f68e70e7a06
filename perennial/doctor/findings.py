"""What a check finds, and how many checks are run side by side with a limit for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from perennial.errors import PerennialError
from validation.verdict import Status, Verdict


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        verdict: INCONCLUSIVE where there is nothing to look at yet, ERROR where a check could not come to its end.
        mend: what to do about it; empty where nothing needs to be done, or the verdict's sentence says it.
    """

    verdict: Verdict
    mend: str = ""


Check = Callable[[], Finding]


def passed(reason: str, **measurements: float) -> Finding:
    """It is as it should be."""
    return Finding(Verdict(Status.PASS, reason, measurements))


def unclear(reason: str, mend: str = "", **measurements: float) -> Finding:
    """There is nothing to judge yet, or a person has to."""
    return Finding(Verdict(Status.INCONCLUSIVE, reason, measurements), mend)


def failed(reason: str, mend: str = "", **measurements: float) -> Finding:
    """It is not as it should be."""
    return Finding(Verdict(Status.FAIL, reason, measurements), mend)


_tries = threading.Condition()
_open_tries = 0


@contextmanager
def to_be_taken_back() -> Iterator[None]:
    """Around something that is written to try, and taken back: whoever ends the process waits for it."""
    global _open_tries
    with _tries:
        _open_tries += 1
    try:
        yield
    finally:
        with _tries:
            _open_tries -= 1
            _tries.notify_all()


def all_taken_back(limit_s: float) -> bool:
    """Whether nothing that was written to try is left, now or within some seconds."""
    with _tries:
        return _tries.wait_for(lambda: not _open_tries, limit_s)


def run_checks(checks: Mapping[str, Check], limit_s: float) -> dict[str, Finding]:
    """Run all checks at once; none keeps the others, or the caller, longer than its limit.

    Args:
        checks: by name.
        limit_s: seconds for each.

    Returns:
        What was found, in the order of `checks`: an error of perennial's own is a FAIL with its sentence; any other, and
        a check that is not done in time, an ERROR.
    """
    found: dict[str, Finding] = {}

    def work(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except PerennialError as error:
            found[name] = failed(error.what)
        except Exception as error:  # noqa: BLE001 - one check's defect keeps no other from being told
            # Its words may hold a password.
            broken = Verdict(Status.ERROR, f"the check came to no end ({type(error).__name__})")
            found[name] = Finding(broken, "see whether its address is right, and what answers there")

    # Daemons: what never answers must not keep the process from ending.
    threads = [threading.Thread(target=work, args=one, daemon=True) for one in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = Finding(
        Verdict(Status.ERROR, f"no answer within {limit_s:g} s"), "see whether its address is right and can be reached"
    )
    return {name: found.get(name, late) for name in checks}
