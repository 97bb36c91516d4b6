"""The lock of a run's directory on the local disk: one process of a machine at a time.

The kernel releases the lock when its holder dies. Other machines are kept out by `attempts.py`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from distrib.errors import ConfigurationError
from distrib.heartbeat import heartbeat
from distrib.log import log
from distrib.storage.file_lock import acquire_lock

_FILE = ".lock"
_POLL_SECONDS = 0.5
_held: dict[Path, int] = {}  # Descriptors of the locks that this process holds.


def _forget_in_child() -> None:
    """Close a forked process's copies, by which it would hold the locks longer than its parent."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def acquire(folder: Path, timeout: float) -> None:
    """Lock a folder until `release` or the end of the process.

    Args:
        folder: Created if necessary.
        timeout: Seconds to wait for another process that holds the lock.

    Raises:
        ConfigurationError: If another process still holds the lock, or this one does, or the folder
            cannot be created.
    """
    if folder in _held:
        raise ConfigurationError(
            f"Another `fit` of this process is training into {folder}. Give each its own "
            "`directory`."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigurationError(
            f"`directory`: cannot write to {folder}: {error.strerror}. "
            "Give a directory that this user can create and write."
        ) from error
    if not acquire_lock(descriptor) and not _wait(descriptor, folder, timeout):
        holder = _holder(descriptor)
        os.close(descriptor)
        raise ConfigurationError(
            f"Another process (pid {holder}) is training into {folder}. Stop it first, or "
            "give this run its own `directory`."
        )
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    _held[folder] = descriptor


def release(folder: Path) -> None:
    """Unlock a folder, if this process holds its lock."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def _wait(descriptor: int, folder: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    if timeout:
        log.info(
            f"process {_holder(descriptor)} still holds {folder}; waiting up to {timeout:g} s."
        )
    while time.monotonic() < deadline:
        heartbeat.beat()
        time.sleep(_POLL_SECONDS)
        if acquire_lock(descriptor):
            return True
    return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
