"""Requests to stop: signals in, a flag out. (Notices of clouds are in `notices.py`.)

SIGTERM comes from Kubernetes, Slurm and spot instances, SIGINT from a keyboard, and SIGUSR1 is what
Open MPI passes on to all ranks while it kills them soon after a SIGTERM. The handler sets a
flag and does nothing else: a handler runs between any two bytecodes, where files, locks and
collectives are in unknown states. The step loop asks for the flag between steps. Further signals
set the flag again, which changes nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from types import CodeType, FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether somebody asked this process to stop while a certain function was running, and when.

    A signal that arrives when that function is no longer on the stack, because it has raised, goes
    to whoever had it before: Ctrl-C in a notebook keeps its meaning after a failed `fit`.

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
        """Whether somebody has."""
        return self.requested_at is not None

    def request(self) -> None:
        """Ask; any thread may, and a signal handler."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def listen(self, within: CodeType) -> None:
        """Take over the signals; only Python's main thread can, elsewhere nothing happens.

        Args:
            within: Code of the function during which the signals are requests to stop.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._within = within
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def leave(self) -> None:
        """Take further signals as repetitions of the first, also after the function has ended."""
        self._within = None

    def ignore(self) -> None:
        """Give the signals back to whoever had them."""
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
