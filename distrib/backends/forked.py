"""What a forked process must not do at its end with a runtime that belongs to its parent.

A process that leaves through `sys.exit` runs exit hooks and C++ destructors. In a forked one those
of Horovod and of TensorFlow's servers wait for threads that it does not have, and change sockets
that it shares with its parent, which fails because of that. (`multiprocessing` ends its workers
without either.)
"""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None)


def leave_to_parent(*exit_hooks: Callable[[], Any]) -> None:
    """Run no C++ destructors, and none of these hooks, when a process forked from this one exits.

    Args:
        exit_hooks: Registered with `atexit`.
    """

    def forget() -> None:
        for hook in exit_hooks:
            atexit.unregister(hook)
        if hasattr(_libc, "on_exit"):  # glibc's. Python has ended, and flushed its files, by then.
            end = ctypes.cast(_libc._exit, ctypes.c_void_p)
            _libc.on_exit(end, None)

    os.register_at_fork(after_in_child=forget)
