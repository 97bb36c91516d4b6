"""The launcher's own standard output and standard error."""

from __future__ import annotations

import errno
import os

STDOUT, STDERR = 1, 2
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def print_message(text: str) -> None:
    """Print a message of the launcher to standard error, while no ranks are running."""
    write(STDERR, f"distrib: {text}\n".encode(errors="backslashreplace"))


def is_same_output() -> bool:
    """Tell whether standard output and standard error go to the same terminal, file or pipe."""
    out, err = os.fstat(STDOUT), os.fstat(STDERR)
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def write(fd: int, data: bytes) -> None:
    """Write to one of the outputs. If its reader is gone or the disk is full, drop the bytes."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *DISK_FULL_ERRORS):
            raise
