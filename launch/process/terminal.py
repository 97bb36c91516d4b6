"""The launcher's own standard output and standard error."""

from __future__ import annotations

import errno
import os

STDOUT, STDERR = 1, 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def tell(text: str) -> None:
    """Show a line of the launcher's own on standard error while no ranks run."""
    write(STDERR, f"distrib: {text}\n".encode())


def is_one_terminal() -> bool:
    """Tell whether both outputs go to the same place."""
    out, err = os.fstat(STDOUT), os.fstat(STDERR)
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def write(fd: int, data: bytes) -> None:
    """Write bytes to one of the outputs. Without a reader, or room, training goes on unseen."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *NO_ROOM):
            raise
