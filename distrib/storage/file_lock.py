"""An exclusive lock on a local file or folder. The kernel releases it when its holder dies."""

from __future__ import annotations

import fcntl


def acquire_lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file or folder (`flock`), until its descriptor is closed or the process ends.

    Two descriptors of one file exclude each other, also within a process.

    Args:
        descriptor: Of the open file or folder.
        wait: Whether to wait until another holder releases the lock. Defaults to `False`.

    Returns:
        Whether the lock is held now; always `True` with `wait`.

    Raises:
        OSError: If the file system has no locks.

    Example:
    >>> with open("lock", "w") as file:
    ...     if acquire_lock(file.fileno()):
    ...         build()
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
