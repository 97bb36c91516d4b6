"""A private folder on the local disk for files on their way to a store.

It is removed when the process ends. A killed process cannot do that, so whoever makes such a folder
first removes those whose owner is gone: each owner holds a lock on its own, which the kernel drops
when it dies.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from distrib.storage.file_lock import acquire_lock

_PREFIX, _UNFINISHED = "distrib-scratch-", "distrib-unlocked-"


def scratch() -> Path:
    """Return this process's folder, in Python's `tempfile.gettempdir()`, which TMPDIR sets."""
    return _scratch_of(os.getpid())


@functools.cache
def _scratch_of(pid: int) -> Path:
    """A forked process has another folder than the one that it was forked from."""
    _remove_orphans(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=_UNFINISHED))
    # Held until the process ends, and taken before the name is one that others look for.
    acquire_lock(os.open(made, os.O_RDONLY))
    folder = made.rename(made.with_name(made.name.replace(_UNFINISHED, _PREFIX)))
    atexit.register(_remove, folder, pid)
    return folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder)


def _remove_orphans(temporary: Path) -> None:
    for folder in temporary.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another process has just removed it.
        if acquire_lock(descriptor):
            shutil.rmtree(folder)
        os.close(descriptor)
