"""Signals to the launcher: noted as they come, dealt with when it is time."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that have come and were not dealt with yet.

    Attributes:
        asked_to_stop: Whether there ever was one.
        waker: File descriptor that becomes readable with each of them.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self.asked_to_stop = False
        self.waker, self._alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(self, number: int) -> None:
        """Take a signal, or what means the same, from any thread."""
        self.asked_to_stop = True
        self._received.append(number)
        with suppress(BlockingIOError):  # It rings already.
            os.write(self._alarm, b"\n")

    def take(self) -> list[int]:
        """Return what has come since the last time."""
        received, self._received = self._received, []
        with suppress(BlockingIOError):
            os.read(self.waker, 4096)
        return received

    def wait(self, seconds: float) -> bool:
        """Wait, but not on after a request to stop; return whether there was one, also before."""
        if not self.asked_to_stop:
            select.select([self.waker], [], [], max(seconds, 0.0))
        return self.asked_to_stop

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note the process's signals for a while, and give them back then."""

        def handle(number: int, _: FrameType | None) -> None:
            self.note(number)

        # `nohup` and shells set some to be ignored, and mean it.
        heeded = [number for number in HEEDED if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
