"""Requests to stop by signal: the handler sets a flag. (`cloud_notices.py` polls the clouds.)

Kubernetes, Slurm and spot instances send SIGTERM, and a keyboard sends SIGINT. Open MPI forwards
SIGUSR1 to all ranks, but kills them soon after a SIGTERM. The handler only sets a flag, because it
runs between any two bytecodes, where files, locks and collectives are in unknown states. The step
loop reads the flag between steps. Further signals change nothing.

SIGUSR1 stays with a script that has a handler for it, such as `faulthandler.register(SIGUSR1)`:
nothing else that stops a job sends it by default.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from distrib.log import log
from distrib.preemption.signal_handlers import SignalHandlers, has_handler

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Seconds for which further signals are ignored when a process that was asked to stop ends.
_ENDING_SECONDS = 30.0


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
        self._interrupted = False
        self._ending_since: float | None = None
        self._handlers: SignalHandlers | None = None

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.requested_at is not None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or another SIGINT, was among the requests."""
        return self._interrupted

    def request(self) -> None:
        """Ask this process to stop; safe to call from any thread and from a signal handler."""
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    def listen(self, wakeup_fd: int | None = None) -> None:
        """Install the signal handlers; does nothing outside of Python's main thread.

        Args:
            wakeup_fd: See `SignalHandlers`. Defaults to `None`.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [number for number in SIGNALS if not _is_reserved(number)]
        self._handlers = SignalHandlers(numbers, self._handle, wakeup_fd)
        self._handlers.install()

    def restore_handlers(self) -> None:
        """Restore the previous signal handlers."""
        if self._handlers is not None:
            self._handlers.restore()
            self._handlers = None

    def ending(self) -> None:
        """Ignore further signals while the process ends, so that they do not change its exit code.

        But a script may catch the exception that ends it. So after a while the next signal finds
        the previous handlers.
        """
        self._ending_since = time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        since = self._ending_since
        if since is not None and time.monotonic() - since > _ENDING_SECONDS:
            self.restore_handlers()
            signal.raise_signal(number)
            return
        self._interrupted |= number == signal.SIGINT
        self.request()


def _is_reserved(number: signal.Signals) -> bool:
    """Tell whether a signal stays with the script; log what becomes of handlers of its own."""
    if number == signal.SIGINT or not has_handler(number):  # Python itself handles SIGINT.
        return False
    if number == signal.SIGUSR1:
        log.info("SIGUSR1 has a handler of this script, and so does not stop the training.")
        return True
    log.info(
        f"{number.name} saves and stops while `fit` trains; this script's own handler gets the "
        "signal again afterwards."
    )
    return False
