"""A private folder on the local disk for files that are waiting for their upload.

The folder is removed when the process exits. A killed process cannot do that, so every process
first removes the folders of dead processes: each live one holds a lock on its folder, which the
kernel releases when the process dies.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from distrib.storage.file_lock import acquire_lock

_PREFIX, _UNLOCKED_PREFIX = "distrib-scratch-", "distrib-unlocked-"


def scratch() -> Path:
    """Return this process's folder, in `tempfile.gettempdir()` (environment variable TMPDIR)."""
    return _scratch_of(os.getpid())


@functools.cache
def _scratch_of(pid: int) -> Path:
    """Create the folder once per process, so that a forked process gets its own."""
    _remove_orphans(Path(tempfile.gettempdir()))
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX))
    # Locked until exit, and before the folder gets the name that other processes look for.
    acquire_lock(os.open(unlocked, os.O_RDONLY))
    folder = unlocked.rename(unlocked.with_name(unlocked.name.replace(_UNLOCKED_PREFIX, _PREFIX)))
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
