"""A place for a file or a folder, on the local disk or in an object store, through fsspec.

Nothing above this module asks which kind it is. What a `Location` promises is what both kinds can
do: a file is replaced as a whole, a file is made only where none was, and after either returns it
will not be lost. Nothing is renamed, and no file is added to, because object stores can do neither.

Listings are never taken from a cache. Operations on a remote store are repeated while their errors
may pass, and raise `OSError` in the end, whatever the library raised.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from distrib.storage import local_files
from distrib.storage.errors import PATIENCE, StorageError, meaning, retrying, without_secrets
from distrib.storage.local_files import replacing

T = TypeVar("T")

# What takes a name with slashes and needs no folders. Anywhere else the folders are made.
_OBJECT_STORES = {"s3", "gs", "memory", "abfs", "az", "oss", "oci"}
_in_memory = threading.Lock()
_LONGEST_DETAIL = 200


@dataclass(frozen=True)
class Location:
    """A file or a folder, which may or may not exist.

    Attributes:
        filesystem: What reaches it.
        path: As `filesystem` wants it.
        patience: Seconds for which remote operations are repeated while their errors may pass.
    """

    filesystem: Any
    path: str
    patience: float = field(default=PATIENCE, compare=False)

    @property
    def url(self) -> str:
        """As a user would write it: `/runs/17` on the local disk, else `s3://bucket/runs/17`."""
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
        """The folder that it is in; a bucket is its own."""
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

    def write_bytes(self, data: bytes) -> None:
        """Replace the file, or make it, with its folder: atomic, and durable on return."""
        if self.local is None:
            self._remote(lambda: self._put(data))
            return
        with replacing(self.local) as temporary:
            temporary.write_bytes(data)

    def create(self, data: bytes) -> bool:
        """Make the file if nobody else has, atomically and durably.

        Of several writers one wins, on the local disk and on stores that honour `If-None-Match: *`
        (S3, Ceph, MinIO) or `ifGenerationMatch=0` (GCS). Where a store ignores the condition, the
        file is looked for first, which leaves a moment for a second winner.

        Args:
            data: Unlike any other writer's, and small: larger uploads come in parts, for which
                some stores ignore the condition.

        Returns:
            Whether the file now holds `data`, which is so too if an earlier call of ours wrote it
            and the answer was lost.
        """
        if self.local is not None:
            return local_files.create(self.local, data) or self.local.read_bytes() == data
        lock: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.filesystem, MemoryFileSystem):
            lock = _in_memory  # It looks first and writes then.
        with lock:
            return self._remote(lambda: self._create(data))

    def upload(self, source: Path) -> None:
        """Replace the file by a copy of a local one, of any size: atomic, and durable on return."""
        if self.local is None:
            self._remote(lambda: self._put_file(source))
            return
        with replacing(self.local) as temporary:
            shutil.copyfile(source, temporary)

    def download(self, target: Path) -> None:
        """Copy the file to a local path, whose folder is made; atomic.

        Raises:
            FileNotFoundError: If there is none.
        """
        with replacing(target) as temporary:
            if self.local is not None:
                shutil.copyfile(self.local, temporary)
            else:
                self._remote(lambda: self.filesystem.get_file(self.path, str(temporary)))

    def exists(self) -> bool:
        """Tell whether there is a file or a folder."""
        return self._info() is not None

    def is_folder(self) -> bool:
        """Tell whether there are files below it."""
        return (self._info() or {}).get("type") == "directory"

    def size(self) -> int:
        """Return the file's size in bytes.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self._info()
        if info is None:
            raise FileNotFoundError(f"{self} does not exist")
        return int(info["size"])

    def remove(self) -> None:
        """Remove the file; that there is none is fine."""
        if self.local is not None:
            self.local.unlink(missing_ok=True)
        else:
            self._if_there(lambda: self.filesystem.rm_file(self.path))

    def remove_tree(self) -> None:
        """Remove the folder with all that is in it; that there is none is fine."""
        if self.local is None:
            self._if_there(lambda: self.filesystem.rm(self.path, recursive=True))
        elif self.local.is_dir():
            shutil.rmtree(self.local)

    def names(self) -> list[str]:
        """Return the sorted names of what is in the folder; none if there is no folder."""
        if self.local is not None:
            return sorted(os.listdir(self.local)) if self.local.exists() else []
        paths = [path.strip("/") for path in self._if_there(self._list) or []]
        # Not what stands for the folder itself, and not a file that is listed in its own place.
        inside = f"{self.path.strip('/')}/"
        return sorted(path.removeprefix(inside) for path in paths if path.startswith(inside))

    def _list(self) -> list[str]:
        self.filesystem.invalidate_cache()
        return list(self.filesystem.ls(self.path, detail=False))

    def _info(self) -> dict[str, Any] | None:
        # Not `filesystem.exists`, which takes any error for absence.
        self.filesystem.invalidate_cache()
        info: dict[str, Any] | None = self._if_there(lambda: self.filesystem.info(self.path))
        return info

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
        """Look, put on condition, and read back: right whatever the store makes of the condition.

        That somebody was faster comes as different errors (Ceph: EINVAL), so what counts is whose
        content is there in the end.
        """
        refused: Exception | None = None
        if (found := self._content()) is None:
            try:
                self._put(data, mode="create")
            except Exception as error:
                refused = error
            found = self._content()
        if found is None and refused is not None:
            raise refused
        return found == data

    def _content(self) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self.path))
        except FileNotFoundError:
            return None

    def _if_there(self, operation: Callable[[], T]) -> T | None:
        try:
            return self._remote(operation)
        except FileNotFoundError:
            return None

    def _remote(self, operation: Callable[[], T]) -> T:
        try:
            return retrying(operation, self.patience)
        except OSError:
            raise
        except Exception as error:
            raise StorageError(f"{self}: {describe_error(error, self)}") from error


def _protocol(filesystem: Any) -> str:
    protocol = filesystem.protocol
    return protocol if isinstance(protocol, str) else str(protocol[0])


def describe_error(error: BaseException, location: Location) -> str:
    """Return the cause of an error in plain words, with what the library says of it.

    Args:
        error: Raised by an operation on `location`.
        location: Gives the bucket's name, and the secrets that must not be shown.

    Example:
    >>> describe_error(OSError(28, "No space left on device"), locate("runs/17", "directory"))
    'no space is left (No space left on device)'
    """
    cause = meaning(error).cause.format(bucket=location.path.split("/")[0])
    detail = _detail(error, location)
    return f"{cause} ({detail})" if detail else cause


def _detail(error: BaseException, location: Location) -> str:
    if isinstance(error, StorageError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Its own text is what this is about to say.
    text = getattr(error, "strerror", None) or str(error)
    first = str(text).strip().partition("\n")[0]
    shown = without_secrets(first, location.filesystem.storage_options)
    return shown if len(shown) <= _LONGEST_DETAIL else f"{shown[:_LONGEST_DETAIL]}..."
