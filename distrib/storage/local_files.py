"""How a file on the local disk is replaced, or made once, so that no crash leaves half of it.

A new file is written beside its place under a name of its own, flushed to the disk, and then put
into place by one operation of the file system, which is all or nothing. The folder is flushed
after that, because the operation itself can be lost with the power.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What file systems without hard links answer, such as FAT and some that are mounted over a network.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block succeeds it takes `path`'s place.

    The replacement is atomic and durable: whoever reads `path`, also after a crash at any moment,
    sees all of the old content or all of the new. When the block raises, `path` is untouched and
    the temporary file is removed. Its name keeps `path`'s suffixes, which libraries go by.

    Example:
    >>> with replacing(Path("best.keras")) as temporary:
    ...     model.save(temporary)
    """
    with _beside(path) as temporary:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    fsync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Make a file that must not exist yet, whole and durable.

    Where the file system has no hard links, a crash in the middle may leave a file that is short.

    Args:
        path: The file; its folder is made if need be.
        data: Its content.

    Returns:
        Whether this call made it; `False` if it was there already, untouched.
    """
    with _beside(path) as temporary:
        temporary.write_bytes(data)
        fsync(temporary)
        try:
            _link(temporary, path, data)
        except FileExistsError:
            return False
    fsync(path.parent)
    return True


def _link(temporary: Path, path: Path, data: bytes) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a name in `path`'s folder that nobody else has; what is there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
