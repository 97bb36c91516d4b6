"""Ends a process that was asked to stop but cannot, because its worker processes were killed.

systemd, Slurm and mpirun send SIGTERM to all processes of a job. Workers that prepare data
(`multiprocessing.Pool`, `PyDataset(use_multiprocessing=True)`) die of it, often with a lock in
hand, and their parent waits for ever: for the next batch, in TensorFlow's C++, where no Python
handler runs, or in the pool's own clean-up when Python exits. Nothing can wake such a wait. So a
thread learns of signals from Python's wake-up descriptor. If there is no progress from then on, it
ends the process with the exit code of a preemption, and the run resumes from its last checkpoint.

A process without workers is left to wait: its step may be a long one, and is worth a save.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from distrib.errors import EXIT_PREEMPTED
from distrib.heartbeat import TRAINING, heartbeat
from distrib.preemption.stop_request import SIGNALS, StopRequest

# A process is stuck after so many times the longest pause between two steps that it has made, and
# after so many seconds at least: while it trains; before its first step, which takes longest; and
# while Python exits.
_PAUSES, _SECONDS, _START_SECONDS, _EXIT_SECONDS = 2.0, 8.0, 60.0, 8.0
_POLL_SECONDS = 0.5

_has_forked = False
_watching: set[StopWatchdog] = set()


class StopWatchdog:
    """Watches a `fit`, and the exit of Python after it.

    Args:
        stop: The request to stop; also made by this object when a signal arrives.
        give_up: Called from the thread before it ends a process whose `fit` makes no progress.

    Attributes:
        wakeup_fd: For `SignalHandlers`.
    """

    def __init__(self, stop: StopRequest, give_up: Callable[[], None]) -> None:
        self._stop = stop
        self._give_up = give_up
        self._closed = threading.Event()
        self._fit_ended = False
        self._exit_began: float | None = None
        self._reader, self.wakeup_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="distrib-stop", daemon=True)
        _watching.add(self)
        self._thread.start()

    def fit_ended(self) -> None:
        """Wait from now on for the exit of Python."""
        self._fit_ended = True

    def exit_began(self) -> None:
        """Watch the exit of Python."""
        self._exit_began = time.monotonic()

    def close(self) -> None:
        """Stop watching; the signal handlers must have been restored before."""
        self._closed.set()
        os.write(self.wakeup_fd, b"\0")  # No signal.
        self._thread.join()
        self.forget()

    def forget(self) -> None:
        """Close the descriptors; all that there is to do in a forked process."""
        _watching.discard(self)
        os.close(self._reader)
        os.close(self.wakeup_fd)

    def _run(self) -> None:
        while not (self._stop.requested or self._closed.is_set()):
            # With a timeout, because requests come from elsewhere too.
            if select.select([self._reader], [], [], 2 * _POLL_SECONDS)[0]:
                numbers = os.read(self._reader, 4096)
                if any(number in numbers for number in SIGNALS):
                    self._stop.request()
        if not (_has_forked or multiprocessing.active_children()):
            return
        while not self._closed.wait(_POLL_SECONDS):
            if self._is_stuck():
                self._end()

    def _is_stuck(self) -> bool:
        if self._exit_began is not None:
            return time.monotonic() - self._exit_began > _EXIT_SECONDS
        if self._fit_ended or self._stop.requested_at is None:
            return False
        since = max(heartbeat.progressed_at, self._stop.requested_at)
        least = _SECONDS if heartbeat.phase == TRAINING else _START_SECONDS
        return time.monotonic() - since > max(least, _PAUSES * heartbeat.longest_pause)

    def _end(self) -> None:
        try:
            if self._exit_began is None:
                self._give_up()
        finally:
            for child in multiprocessing.active_children():
                child.kill()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_PREEMPTED)


def _after_fork_in_parent() -> None:
    global _has_forked
    _has_forked = True


def _after_fork_in_child() -> None:
    global _has_forked
    _has_forked = False
    for watchdog in _watching.copy():
        watchdog.forget()


os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
