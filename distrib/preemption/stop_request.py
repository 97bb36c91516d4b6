"""Requests to stop: signals in, a flag out. (Notices of clouds are in `cloud_notices.py`.)

SIGTERM comes from Kubernetes, Slurm and spot instances, SIGINT from a keyboard, and SIGUSR1 is what
Open MPI passes on to all ranks while it kills them soon after a SIGTERM. The handler sets a flag
and does nothing else: a handler runs between any two bytecodes, where files, locks and collectives
are in unknown states. The step loop reads the flag between steps. Further signals set the flag
again, which changes nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process has been asked to stop, and when.

    Example:

    ```python
    stop = StopRequest()
    stop.listen()
    try:
        while not stop.requested:
            train_one_step()
    finally:
        stop.ignore()
    ```
    """

    def __init__(self) -> None:
        # Time of the first request, by `time.monotonic()`.
        self.requested_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether there has been a request."""
        return self.requested_at is not None

    def request(self) -> None:
        """Ask the process to stop. Any thread may call it, and a signal handler."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def listen(self) -> None:
        """Take signals as requests. Only Python's main thread can; in others nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Give the signals back to the handlers that they had before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request()
