"""Requests to stop by signal: the handler sets a flag. (`cloud_notices.py` polls the clouds.)

Kubernetes, Slurm and spot instances send SIGTERM, and a keyboard sends SIGINT. Open MPI forwards
SIGUSR1 to all ranks, but kills them soon after a SIGTERM. The handler only sets a flag, because it
runs between any two bytecodes, where files, locks and collectives are in unknown states. The step
loop reads the flag between steps. Further signals change nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from types import CodeType, FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A request that this process stop, made while a given function was running.

    A signal that arrives when that function is no longer on the stack, because it has raised, goes
    to the previous handler: Ctrl-C in a notebook keeps its meaning after a failed `fit`.

    Example:

    ```python
    def train():
        stop = StopRequest()
        stop.listen(within=train.__code__)
        while not stop.requested:
            train_one_step()
        stop.ignore()
    ```
    """

    def __init__(self) -> None:
        # By `time.monotonic()`, of the first request.
        self.requested_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._within: CodeType | None = None

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.requested_at is not None

    def request(self) -> None:
        """Ask this process to stop; safe to call from any thread and from a signal handler."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def listen(self, within: CodeType) -> None:
        """Install the signal handlers; does nothing outside of Python's main thread.

        Args:
            within: Code of the function during which signals are requests to stop.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._within = within
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def leave(self) -> None:
        """Treat further signals as repetitions of the first, also after the function has ended."""
        self._within = None

    def ignore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        while self._within is not None and frame is not None:
            if frame.f_code is self._within:
                break
            frame = frame.f_back
        else:
            if self._within is not None:
                self.ignore()
                signal.raise_signal(number)
                return
        self.request()
