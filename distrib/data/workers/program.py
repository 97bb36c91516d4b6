"""What a worker process runs: receives requests, answers each with the result of the task.

Started by its path as a program of its own, not forked (TensorFlow and Horovod have threads and
locks that a forked process cannot use) and not spawned by `multiprocessing`, which would import the
user's script, and so start a training in every worker.

A worker ends with its parent, however that ends: the kernel sends SIGIO, which ends a process, when
the pipe that the parent holds is closed. This also works while compiled code holds the GIL. Signals
that ask a job to stop reach the whole process group, or, from Slurm, every process. They are for
the rank, which may want more examples before it saves. So a worker does nothing about them.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Regions of the shared file: requests and replies take turns, so that the next request can be
# written, and the last reply be read, while the worker is busy with the present one.
PROGRESS, REGIONS = 0, 5
_MAX_SETUP = 1 << 18  # More than Linux holds between two sockets.


def request_region(turn: int) -> int:
    """Return the number of the region for a request."""
    return 1 + turn % 2


def reply_region(turn: int) -> int:
    """Return the number of the region for the reply to it."""
    return 3 + turn % 2


def main() -> None:
    """Run a worker; the arguments are descriptors, and the size of a table."""
    connection, life, shared, objects, table_size = (int(text) for text in sys.argv[1:])
    _end_with_parent(life)
    _disregard_stop_signals()
    with socket.socket(fileno=connection) as connected:
        sys.path[:] = json.loads(connected.recv(_MAX_SETUP))
        _serve(connected, shared, objects, table_size)


def _serve(connected: socket.socket, shared: int, objects: int, table_size: int) -> None:
    import faulthandler
    import pickle
    import struct
    import traceback

    from distrib.data.workers import messages
    from distrib.data.workers.pickling import load

    faulthandler.enable()  # Shows the Python stack of a crash in compiled code.
    regions = [messages.Region(shared, number) for number in range(REGIONS)]
    progress = regions[PROGRESS].view(8)

    def started(index: int) -> None:
        struct.pack_into("<q", progress, 0, index)

    try:
        task = pickle.loads(connected.recv(_MAX_SETUP))(load(objects, table_size))
    except Exception:
        task = _Failing(f"A data worker could not load its objects:\n{traceback.format_exc()}")
    os.close(objects)
    turn = 0
    while message := connected.recv(messages.MAX_MESSAGE):
        try:
            request = messages.unpack(message, regions[request_region(turn)])
            result = task(request, started)
            reply = messages.pack((True, result), regions[reply_region(turn)])
        except Exception as error:
            text = str(error) if type(error) is RuntimeError else traceback.format_exc()
            reply = messages.pack((False, text), regions[reply_region(turn)])
        message = request = result = None  # type: ignore[assignment]
        started(-1)
        try:
            connected.send(reply)
        except BrokenPipeError:
            return
        turn += 1


class _Failing:
    def __init__(self, message: str) -> None:
        self._message = message

    def __call__(self, request: object, started: object) -> None:
        raise RuntimeError(self._message)


def _end_with_parent(life: int) -> None:
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def _disregard_stop_signals() -> None:
    def disregard(number: int, frame: FrameType | None) -> None:
        pass

    for number in STOP_SIGNALS:
        # Not SIG_IGN, which programs that the user's code starts would inherit.
        signal.signal(number, disregard)
        signal.siginterrupt(number, False)
    # The parent has blocked them for the time before.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


if __name__ == "__main__":
    main()
