"""The path of a file or a folder, on the local disk or, through fsspec, in an object store.

A `Location` has the operations that both can do: replace a whole file atomically and durably, and
create one exclusively. It has no rename and no append, because object stores have neither.

Listings never come from a cache. Operations on a remote store are retried while their errors are
transient, and finally raise an `OSError`, whatever the library raised.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from distrib.storage import local_files
from distrib.storage.errors import RETRY_TIMEOUT, StorageError, classify, redact_secrets, retry
from distrib.storage.local_files import replacing

T = TypeVar("T")

# Protocols that need no folders for a name with slashes. For all others the folders are created.
_OBJECT_STORES = {"s3", "gs", "memory", "abfs", "az", "oss", "oci"}
_memory_lock = threading.Lock()
_MAX_DETAIL_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Location:
    """A file or a folder, which may or may not exist.

    Attributes:
        filesystem: Of fsspec.
        path: In the notation of `filesystem`.
        timeout: Seconds for which remote operations are retried while their errors are transient.
    """

    filesystem: Any
    path: str
    timeout: float = field(default=RETRY_TIMEOUT, compare=False)

    @property
    def url(self) -> str:
        """The path as the user would write it: `/runs/17` or `s3://bucket/runs/17`."""
        if self.local is not None:
            return self.path
        return f"{_protocol(self.filesystem)}://{self.path.lstrip('/')}"

    @property
    def local(self) -> Path | None:
        """Absolute path, if it is on the local disk."""
        return Path(self.path) if isinstance(self.filesystem, LocalFileSystem) else None

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that contains it; a bucket is its own parent."""
        return replace(self, path=self.path.rstrip("/").rpartition("/")[0] or self.path)

    def __truediv__(self, name: str) -> Location:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    def read_bytes(self) -> bytes:
        """Return the file's content.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.local is not None:
            return self.local.read_bytes()
        return bytes(self._remote(lambda: self.filesystem.cat_file(self.path)))

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end - 1` of the file, fewer if it ends before.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.local is None:
            # By name: s3fs has another parameter in their place.
            read = functools.partial(self.filesystem.cat_file, self.path, start=start, end=end)
            return bytes(self._remote(read))
        with open(self.local, "rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)

    def write_bytes(self, data: bytes) -> None:
        """Replace or create the file, and its folder: atomic, and durable on return."""
        if self.local is None:
            self._remote(lambda: self._put(data))
            return
        with replacing(self.local) as temporary:
            temporary.write_bytes(data)

    def create(self, data: bytes) -> bool:
        """Create the file exclusively, atomically and durably.

        Exactly one of several writers wins, on the local disk and on stores that honour
        `If-None-Match: *` (S3, Ceph, MinIO) or `ifGenerationMatch=0` (GCS). On a store that ignores
        the condition, a second writer can win in the moment between the check and the write.

        Args:
            data: Unique to this writer, and small: some stores ignore the condition for multi-part
                uploads.

        Returns:
            Whether the file now holds `data`. This is also true if an earlier attempt of this
            writer succeeded and only the store's answer was lost.
        """
        if self.local is not None:
            return local_files.create(self.local, data) or self.local.read_bytes() == data
        lock: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.filesystem, MemoryFileSystem):
            lock = _memory_lock  # Its exclusive create is not atomic.
        with lock:
            return self._remote(lambda: self._create(data))

    def honours_conditions(self) -> bool:
        """Return whether this file, which exists, is safe from a second exclusive creation.

        Otherwise its content is another one afterwards.
        """
        second = b"created a second time"
        if self.local is not None:
            return not local_files.create(self.local, second)
        with suppress(Exception):  # Stores refuse with different errors.
            self._put(second, mode="create")
        return self.read_bytes() != second

    def upload(self, source: Path) -> None:
        """Replace the file with a copy of a local file: atomic, and durable on return."""
        if self.local is None:
            self._remote(lambda: self._put_file(source))
            return
        with replacing(self.local) as temporary:
            shutil.copyfile(source, temporary)

    def download(self, target: Path) -> None:
        """Copy the file to a local path atomically, and create its folder.

        Raises:
            FileNotFoundError: If there is none.
        """
        with replacing(target) as temporary:
            if self.local is not None:
                shutil.copyfile(self.local, temporary)
            else:
                self._remote(lambda: self.filesystem.get_file(self.path, str(temporary)))

    def info(self) -> dict[str, Any] | None:
        """Return what the file system's `info` knows of it; `None` if it does not exist."""
        # `filesystem.exists` would report any error as absence.
        self.filesystem.invalidate_cache()
        info: dict[str, Any] | None = self._unless_missing(lambda: self.filesystem.info(self.path))
        return info

    def exists(self) -> bool:
        """Return whether there is a file or a folder."""
        return self.info() is not None

    def is_folder(self) -> bool:
        """Return whether it is a folder."""
        return (self.info() or {}).get("type") == "directory"

    def size(self) -> int:
        """Return the file's size in bytes.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self.info()
        if info is None:
            raise FileNotFoundError(f"{self} does not exist")
        return int(info["size"])

    def remove(self) -> None:
        """Remove the file if it exists."""
        if self.local is not None:
            self.local.unlink(missing_ok=True)
        else:
            self._unless_missing(lambda: self.filesystem.rm_file(self.path))

    def remove_tree(self) -> None:
        """Remove the folder and everything in it, if it exists."""
        if self.local is None:
            self._unless_missing(lambda: self.filesystem.rm(self.path, recursive=True))
        elif self.local.is_dir():
            shutil.rmtree(self.local)

    def names(self) -> list[str]:
        """Return the sorted names in the folder; an empty list if there is no folder."""
        if self.local is not None:
            return sorted(os.listdir(self.local)) if self.local.exists() else []
        paths = [path.strip("/") for path in self._unless_missing(self._list) or []]
        # Skip the placeholder of the folder itself, and a file that is listed as its own entry.
        inside = f"{self.path.strip('/')}/"
        return sorted(path.removeprefix(inside) for path in paths if path.startswith(inside))

    def _list(self) -> list[str]:
        self.filesystem.invalidate_cache()
        return list(self.filesystem.ls(self.path, detail=False))

    def _put(self, data: bytes, mode: str = "overwrite") -> None:
        self._make_folder()
        self.filesystem.pipe_file(self.path, data, mode=mode)

    def _put_file(self, source: Path) -> None:
        self._make_folder()
        self.filesystem.put_file(str(source), self.path)

    def _make_folder(self) -> None:
        if _protocol(self.filesystem) not in _OBJECT_STORES:
            self.filesystem.makedirs(self.parent.path, exist_ok=True)

    def _create(self, data: bytes) -> bool:
        """Check, put with a condition, and read back.

        Stores report a lost race with different errors (Ceph: EINVAL), and some ignore the
        condition. Only the content that is there in the end tells which writer won.
        """
        rejection: Exception | None = None
        if (found := self._content()) is None:
            try:
                self._put(data, mode="create")
            except Exception as error:
                rejection = error
            found = self._content()
        if found is None and rejection is not None:
            raise rejection
        return found == data

    def _content(self) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self.path))
        except FileNotFoundError:
            return None

    def _unless_missing(self, operation: Callable[[], T]) -> T | None:
        try:
            return self._remote(operation)
        except FileNotFoundError:
            return None

    def _remote(self, operation: Callable[[], T]) -> T:
        try:
            return retry(operation, self.timeout)
        except OSError:
            raise
        except Exception as error:
            raise StorageError(f"{self}: {describe_error(error, self)}") from error


def _protocol(filesystem: Any) -> str:
    protocol = filesystem.protocol
    return protocol if isinstance(protocol, str) else str(protocol[0])


def describe_error(error: BaseException, location: Location) -> str:
    """Return the cause of an error in plain words, with the library's own message.

    Args:
        error: Raised by an operation on `location`.
        location: Has the bucket's name, and the secrets to redact.

    Example:
    >>> describe_error(OSError(28, "No space left on device"), locate("runs/17", "directory"))
    'no space is left (No space left on device)'
    """
    cause = classify(error).cause.format(bucket=location.path.split("/")[0])
    detail = _detail(error, location)
    return f"{cause} ({detail})" if detail else cause


def _detail(error: BaseException, location: Location) -> str:
    if isinstance(error, StorageError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # A `StorageError` already contains the text made here.
    text = getattr(error, "strerror", None) or str(error)
    first = str(text).strip().partition("\n")[0]
    shown = redact_secrets(first, location.filesystem.storage_options)
    return shown if len(shown) <= _MAX_DETAIL_LENGTH else f"{shown[:_MAX_DETAIL_LENGTH]}..."
