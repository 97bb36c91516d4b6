"""Runs the launcher as a child if it would be process 1 of a container.

A process whose parent has died becomes a child of process 1, and stays a zombie until process 1
reads its exit code. The supervisor waits for its own children only. So where it would be process 1,
it runs as a child of this one, which waits for all children and forwards signals.

The kernel delivers to process 1 only signals that it handles, and kills everything in the container
when it ends.

A container may be asked to stop when its work is done and its processes are about to end, which
takes Python a moment. The exit code is settled by then, and a signal must not turn success into
143: the Job would wait for a new pod whose peers have all ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

FORWARDED_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


def as_child(work: Callable[[], int]) -> int:
    """Run `work` in a child process, and return its exit code, 128 plus the number for a signal.

    Args:
        work: Returns an exit code, or ends the process.
    """
    # Signals that arrive before there is a child to forward them to stay pending.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        try:
            return work()
        finally:
            _ignore_signals()

    def forward(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # It has just ended.
            os.kill(child, number)

    for number in FORWARDED_SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    while True:
        pid, status = os.wait()
        if pid == child:
            _ignore_signals()
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _ignore_signals() -> None:
    """Ignore signals until the process ends, since Python removes its handlers before that."""
    for number in FORWARDED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
