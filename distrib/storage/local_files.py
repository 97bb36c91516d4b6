"""Files on the local disk: locks, and atomic, durable writes.

The new content is written to a temporary file in the same folder, flushed to disk, and renamed or
linked into place, which is atomic. The folder is flushed after that, because a power failure can
undo the rename itself.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of file systems without hard links, such as FAT and some network mounts.
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
    """Yield a temporary path in `path`'s folder, and rename it to `path` if the block succeeds.

    The replacement is atomic and durable: a reader of `path` sees all of the old content or all of
    the new, even after a crash. If the block raises, `path` is unchanged and the temporary file is
    removed. The temporary name keeps `path`'s suffixes, by which libraries choose a file format.

    Example:
    >>> with replacing(Path("best.keras")) as temporary:
    ...     model.save(temporary)
    """
    with _temporary_path(path) as temporary:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    fsync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Create a file that must not exist yet, atomically and durably.

    On a file system without hard links, a crash during the call may leave a truncated file.

    Args:
        path: The file; its folder is created if necessary.
        data: Its content.

    Returns:
        Whether this call created the file; `False` if it existed, and is unchanged.
    """
    with _temporary_path(path) as temporary:
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
def _temporary_path(path: Path) -> Iterator[Path]:
    """Yield a unique path in `path`'s folder, and remove the file there in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
