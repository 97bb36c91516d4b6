"""Signal handlers that leave no trace: neither in child processes, nor after they are removed.

A forked process inherits its parent's handlers. A handler that only sets a flag would make it
immune to `terminate()`, so a forked child gets back what was in place before. Signals are blocked
during the fork, because one that arrives before that moment would be lost. (A process that
`subprocess` or `spawn` starts has no handlers: `exec` resets them.)

Not every handler was set through Python's `signal`: `faulthandler.register` and C libraries have
the kernel's disposition only, which `signal.getsignal` does not show. So that is restored too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]

# More than the size of `struct sigaction` on any system; its first member is the handler.
_SIZE = 256
_libc = ctypes.CDLL(None, use_errno=True)
_installed: list[SignalHandlers] = []
_fork = threading.local()  # The signal mask of a thread that is forking.


@dataclass(frozen=True)
class _Replaced:
    """What a handler has replaced, and the C function that calls it."""

    handler: Any
    disposition: bytes
    caller: int


class SignalHandlers:
    """One handler for several signals.

    Args:
        numbers: Of the signals.
        handle: Runs in the main thread, between two bytecodes.
        wakeup_fd: A non-blocking file descriptor to which every signal's number is written as a
            byte, also while the main thread runs no Python; unused if the process has one already.
            Defaults to `None`.
    """

    def __init__(
        self, numbers: Sequence[signal.Signals], handle: Handler, wakeup_fd: int | None = None
    ) -> None:
        self._numbers = numbers
        self._handle = handle
        self._wakeup_fd = wakeup_fd
        self._replaced: dict[signal.Signals, _Replaced] = {}

    def install(self) -> None:
        """Install the handlers; only Python's main thread may call this."""
        for number in self._numbers:
            before = _disposition(number)
            handler = signal.signal(number, self._handle)
            self._replaced[number] = _Replaced(handler, before, _function(_disposition(number)))
        if self._wakeup_fd is not None:
            users = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
            if users != -1:
                signal.set_wakeup_fd(users)
        _installed.append(self)

    def restore(self) -> None:
        """Put back what was in place before, except where somebody has replaced the handler."""
        for number, replaced in self._replaced.items():
            if signal.getsignal(number) != self._handle:
                continue
            now = _disposition(number)
            ours = _function(now) == replaced.caller
            signal.signal(number, replaced.handler or signal.SIG_DFL)
            _set_disposition(number, replaced.disposition if ours else now)
        self._replaced.clear()
        if self in _installed:
            _installed.remove(self)
        if self._wakeup_fd is not None:
            users = signal.set_wakeup_fd(-1)
            if users not in (-1, self._wakeup_fd):
                signal.set_wakeup_fd(users)


def has_handler(number: signal.Signals) -> bool:
    """Tell whether a signal has a handler, set by Python or by C, and is not just ignored."""
    return _function(_disposition(number)) not in (int(signal.SIG_DFL), int(signal.SIG_IGN))


def _disposition(number: int) -> bytes:
    buffer = ctypes.create_string_buffer(_SIZE)
    _libc.sigaction(int(number), None, buffer)
    return buffer.raw


def _function(disposition: bytes) -> int:
    """Return the C function that handles the signal."""
    return ctypes.c_void_p.from_buffer_copy(disposition).value or 0


def _set_disposition(number: int, disposition: bytes) -> None:
    _libc.sigaction(int(number), ctypes.create_string_buffer(disposition, _SIZE), None)


def _before_fork() -> None:
    numbers = {number for each in _installed for number in each._numbers}
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _after_fork_in_parent() -> None:
    if _fork.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _after_fork_in_child() -> None:
    for handlers in reversed(_installed.copy()):
        handlers.restore()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
