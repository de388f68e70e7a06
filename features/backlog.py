"""A backlog, read by a process of its own: one core takes Kafka's records apart while another decodes and writes them.

kafka-python unpacks records in Python and holds its lock meanwhile, so in one process each would wait for the other. The
process is a program of few imports that gets what it needs on its standard input and writes pickled batches to its output.
"""

from __future__ import annotations

import gc
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from features.consumer import Batch, open_consumer, read_to_end
from perennial.errors import PerennialError, StateError, UnreachableError
from perennial.settings import Settings

LEFT_OVER = 200_000
ENDS_WITHIN_S = 5.0


def read_backlog(settings: Settings, positions: Mapping[str, Mapping[int, int]]) -> Iterator[Batch]:
    """As `consumer.read_to_end` of one topic after the other, in another process; it ends when the iterator is closed.

    Args:
        settings: where the broker is.
        positions: next position by partition, by topic.

    Raises:
        StateError: the broker no longer has the records at a position.
        UnreachableError: the broker does not answer, or the process ended by itself.
    """
    command = [sys.executable, "-m", "features.backlog"]
    # In a session of its own: Ctrl-C is for whoever asked, who wants the batches that are on their way.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        if process.stdin is None or process.stdout is None:
            raise StateError("a process was started without its pipes")
        try:
            # Not as arguments: the options of the client hold passwords.
            with process.stdin:
                pickle.dump((settings, {topic: dict(at) for topic, at in positions.items()}), process.stdin)
            while True:
                found = pickle.load(process.stdout)
                if found is None:
                    return
                if isinstance(found, PerennialError):
                    raise found
                yield found
        except (EOFError, pickle.UnpicklingError, BrokenPipeError) as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_WITHIN_S)
            raise UnreachableError(
                f"the process that reads the backlog ended by itself (status {process.returncode})", "; run it again"
            ) from error
        finally:
            process.kill()


def _main() -> None:
    # What ends a service is sent to all of its processes; whoever asked still wants the batches that are on their way.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    output = sys.stdout.buffer
    # Whatever else is printed must not come in between.
    sys.stdout = sys.stderr
    settings, positions = pickle.load(sys.stdin.buffer)
    # Records come by the million and hold no cycles, but looking for some takes a quarter of the time. By this they are looked
    # for when as many objects as no batch has are left over.
    gc.set_threshold(LEFT_OVER)
    try:
        with open_consumer(settings) as consumer:
            for topic, at in positions.items():
                for batch in read_to_end(consumer, topic, at):
                    pickle.dump(batch, output, protocol=pickle.HIGHEST_PROTOCOL)
        pickle.dump(None, output)
    except PerennialError as error:
        pickle.dump(error, output)
    output.flush()


if __name__ == "__main__":
    try:
        _main()
    except BrokenPipeError:  # whoever asked is gone
        sys.exit(1)
