"""Where files go, and how one is replaced so that a crash leaves the old one or the new one.

Every path that users give may be a URL in fsspec's notation. This version writes to the local
disk only; anything else is refused here, in one place, before training starts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.core import split_protocol

from distrib.errors import ConfigurationError


def local_path(url: str | os.PathLike[str], argument: str) -> Path:
    """Turn a path or `file://` URL into an absolute local path.

    Args:
        url: What the user gave.
        argument: Name of the user's argument, for the message.

    Raises:
        ConfigurationError: If the path is empty or names storage that is not the local disk.

    Example:
    >>> local_path("file:///tmp/run", "directory")
    PosixPath('/tmp/run')
    """
    text = os.fspath(url)
    if not text:
        raise ConfigurationError(f"`{argument}` is empty; give the path to write to.")
    protocol, path = split_protocol(text)
    if protocol not in (None, "file", "local"):
        raise ConfigurationError(
            f"`{argument}={text!r}` names {protocol!r} storage, but this version of distrib writes "
            "to the local disk only; give a local path, for example on a mounted volume."
        )
    return Path(os.path.abspath(os.path.expanduser(path)))


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path`'s content by `text` (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
