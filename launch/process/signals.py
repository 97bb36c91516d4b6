"""Signals to the launcher: recorded when they arrive, acted on by the main loop."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that have arrived and were not acted on yet.

    Attributes:
        stop_requested: Whether any signal has ever arrived.
        wakeup_fd: File descriptor that becomes readable with each of them.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self.stop_requested = False
        self.wakeup_fd, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def record(self, number: int) -> None:
        """Record a signal, or an equivalent event; any thread may call this."""
        self.stop_requested = True
        self._received.append(number)
        with suppress(BlockingIOError):  # The pipe is full, so the reader will wake up anyway.
            os.write(self._wakeup_writer, b"\n")

    def take(self) -> list[int]:
        """Return the signals that have arrived since the last call."""
        received, self._received = self._received, []
        with suppress(BlockingIOError):
            os.read(self.wakeup_fd, 4096)
        return received

    def wait(self, seconds: float) -> bool:
        """Wait until a stop is requested, or time is over; return whether it was requested."""
        if not self.stop_requested:
            select.select([self.wakeup_fd], [], [], max(seconds, 0.0))
        return self.stop_requested

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Record the signals of this process, and restore its handlers afterwards."""

        def handle(number: int, _: FrameType | None) -> None:
            self.record(number)

        # `nohup` and shells set some signals to be ignored on purpose.
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
