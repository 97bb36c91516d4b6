"""What the first process of a container owes to the others: it reaps orphans and passes signals on.

A process whose parent has died becomes a child of process 1, and stays a zombie until that asks for
its exit code. The supervisor waits for children that it knows and for no others, so where it would
be process 1 it runs as a child of this one, which knows nothing and waits for all.

The kernel delivers to process 1 only signals that it handles, and kills everything in the container
when it ends.

A container may be asked to stop when its work is done and its processes are about to end, which
takes Python a moment. It has its exit code by then, and a signal must not turn a success into 143:
the job would wait for a pod whose peers have all gone home.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

PASSED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


def as_child(work: Callable[[], int]) -> int:
    """Do `work` in a child, and return its exit code, in a shell's manner.

    Args:
        work: Returns an exit code, or ends the process.
    """
    # What arrives before there is a child to pass it on to is kept until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        try:
            return work()
        finally:
            _ignore_signals()

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # It has just ended.
            os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            _ignore_signals()
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _ignore_signals() -> None:
    """Let the process end in peace: handlers of Python's own are gone before its very end."""
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
