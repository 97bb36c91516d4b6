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
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A request that this process stop, from a signal or from another thread.

    Example:

    ```python
    stop = StopRequest()
    stop.listen()
    try:
        while not stop.requested:
            train_one_step()
    finally:
        stop.restore_handlers()
    ```
    """

    def __init__(self) -> None:
        # Time of the first request, by `time.monotonic()`.
        self.requested_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.requested_at is not None

    def request(self) -> None:
        """Ask this process to stop; safe to call from any thread and from a signal handler."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def listen(self) -> None:
        """Install the signal handlers; does nothing outside of Python's main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def restore_handlers(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:  # Not if somebody has replaced ours.
                signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
