"""Transfers a checkpoint's files between memory and a store, and checksums every byte.

Several files are transferred at once, because one stream to an object store is slow, and one
copying thread leaves a disk idle. A file has at most `layout.MAX_FILE_BYTES` (or one row of an
array), so the memory needed beside the state is bounded: one file per worker.

On the local disk large files are written with O_DIRECT where the file system supports it. The bytes
then go from the buffer to the disk without the kernel's copy, which would cost several times the
CPU and evict the training data from the page cache; checkpoints are rarely read.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np

from distrib.checkpoint.layout import MAX_FILE_BYTES, Array
from distrib.checkpoint.manifest import DamagedCheckpointError, FileEntry
from distrib.checkpoint.orbax_format import DataFile
from distrib.storage.local_files import fsync
from distrib.storage.location import Location

T = TypeVar("T")
S = TypeVar("S")

WORKERS = 8
LOCAL_WORKERS = 2
_MIN_DIRECT_BYTES = 1 << 20
_BLOCK = 4096
_CHUNK = 4 << 20
_CACHED_BYTES = 256 << 10
_NICENESS = 2
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def write(files: Sequence[DataFile], folder: Location, cache: Path | None) -> tuple[FileEntry, ...]:
    """Write files durably and return their manifest entries, sorted by path.

    The entries of `folder` itself are not flushed: `commit.publish` does so after the manifest.

    Args:
        files: To write below `folder`; existing files are replaced.
        folder: Local or remote.
        cache: Local folder for a second copy of remote files; `None` for none.
    """
    local = folder.local
    folders = {file.path.rpartition("/")[0] for file in files}
    for root in (local, cache):
        if root is not None:
            for name in sorted(folders):
                (root / name).mkdir(parents=True, exist_ok=True)

    def put(file: DataFile) -> FileEntry:
        if local is not None:
            return _write_local(local / file.path, file)
        content = _content(file)
        if cache is not None:
            (cache / file.path).write_bytes(content)
        (folder / file.path).write_bytes(content)
        return FileEntry(file.path, len(content), google_crc32c.value(content))

    if local is None:
        # No lower priority: the CPU time is spent in the store library's own thread.
        entries = parallel_map(put, files, WORKERS)
    else:
        entries = parallel_map(put, files, LOCAL_WORKERS, _lower_priority)
        for name in sorted(_parents(folders) - {""}, reverse=True):
            fsync(local / name)
    return tuple(sorted(entries, key=lambda entry: entry.path))


def read(
    entries: Iterable[FileEntry],
    folder: Location,
    cache: Path | None,
    into: Mapping[str, list[tuple[int, Array]]],
) -> dict[str, Array]:
    """Read files, verify their checksums, and return the content of those without a destination.

    The content has shape (n,), uint8, and may be read-only.

    Args:
        entries: Of the manifest.
        folder: That has the files.
        cache: Local folder that may have copies, which are preferred if they are intact.
        into: Offsets and arrays to fill, shape (n,) uint8, by path.

    Raises:
        DamagedCheckpointError: Names the first file that is missing, short or changed.
    """

    def get(entry: FileEntry) -> tuple[str, Array]:
        parts = into.get(entry.path)
        if cache is not None:
            try:
                return entry.path, _read_local(cache / entry.path, entry, parts)
            except DamagedCheckpointError:
                pass  # A killed process left a partial copy; the store has the original.
        return entry.path, _read(folder / entry.path, entry, parts)

    workers = WORKERS if folder.local is None else LOCAL_WORKERS
    contents = dict(parallel_map(get, list(entries), workers))
    return {path: content for path, content in contents.items() if path not in into}


def parallel_map(
    work: Callable[[S], T],
    items: Sequence[S],
    workers: int,
    initializer: Callable[[], None] | None = None,
) -> list[T]:
    """Call `work` for every item in a thread pool; return the results in order.

    The first error cancels the items that have not begun.

    Args:
        work: Called with an item.
        items: All of them.
        workers: Number of threads.
        initializer: Called once in each thread. Defaults to `None`.
    """
    with ThreadPoolExecutor(workers, "distrib-transfer", initializer=initializer) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _lower_priority() -> None:
    """Give training priority on the CPU; on Linux each thread has its own priority."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _parents(folders: Iterable[str]) -> set[str]:
    """Return the folders and all their parents."""
    return {
        "/".join(parts[:depth])
        for parts in (folder.split("/") for folder in folders)
        for depth in range(1, len(parts) + 1)
    }


def _content(file: DataFile) -> bytes:
    parts: list[memoryview | bytes] = []
    end = 0
    for offset, data in file.parts:
        parts += [bytes(offset - end), data.data]
        end = offset + len(data)
    return b"".join([*parts, bytes(file.size - end)])


def _write_local(path: Path, file: DataFile) -> FileEntry:
    """Write one new file; a large one with O_DIRECT, from an aligned buffer."""
    if file.size < _MIN_DIRECT_BYTES:
        content = _content(file)
        _write_all(path, memoryview(content), 0)
        return FileEntry(file.path, file.size, google_crc32c.value(content))
    padded = -(-file.size // _BLOCK) * _BLOCK
    with _buffer(padded) as memory:
        buffer = np.frombuffer(memory, np.uint8)[:padded]
        crc = _copy(file, buffer)
        try:
            _write_all(path, buffer.data, _O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write_all(path, buffer.data, 0)  # This file system has no direct writes.
        os.truncate(path, file.size)
        return FileEntry(file.path, file.size, crc)


def _copy(file: DataFile, buffer: Array) -> int:
    """Copy a file into a buffer, pad it with zeros, and return the file's CRC32C."""
    crc, end = 0, 0
    for offset, data in [*file.parts, (file.size, np.empty(0, np.uint8))]:
        buffer[end:offset] = 0
        crc = google_crc32c.extend(crc, buffer[end:offset])
        for start in range(0, len(data), _CACHED_BYTES):
            chunk = buffer[offset + start : offset + min(start + _CACHED_BYTES, len(data))]
            chunk[:] = data[start : start + _CACHED_BYTES]
            crc = google_crc32c.extend(crc, chunk)  # While the chunk is in the CPU's cache.
        end = offset + len(data)
    buffer[end:] = 0
    return crc


_free_buffers: list[mmap.mmap] = []


@contextmanager
def _buffer(size: int) -> Iterator[mmap.mmap]:
    """Yield page-aligned memory from a pool, which avoids new page faults for every file."""
    if size > MAX_FILE_BYTES:  # One row of an array, larger than any other file.
        yield mmap.mmap(-1, size)
        return
    try:
        memory = _free_buffers.pop()
    except IndexError:
        memory = mmap.mmap(-1, MAX_FILE_BYTES)
    try:
        yield memory
    finally:
        _free_buffers.append(memory)


def _write_all(path: Path, remaining: memoryview, flags: int) -> None:
    """Write a new file and flush it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
    try:
        while len(remaining):
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(location: Location, entry: FileEntry, parts: list[tuple[int, Array]] | None) -> Array:
    if location.local is not None:
        return _read_local(location.local, entry, parts)
    try:
        content = np.frombuffer(location.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{location} is missing") from error
    _check(location, entry, len(content), lambda: google_crc32c.value(content))
    for offset, target in parts or []:
        target[:] = content[offset : offset + len(target)]
    return content


def _read_local(path: Path, entry: FileEntry, parts: list[tuple[int, Array]] | None) -> Array:
    """Read a local file straight into its destinations."""
    content = np.empty(entry.size if parts is None else 0, np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            targets = [(0, content)] if parts is None else parts
            _check(path, entry, size, lambda: _read_into(file, size, targets))
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing") from error
    return content


def _check(location: object, entry: FileEntry, size: int, checksum: Callable[[], int]) -> None:
    if size != entry.size:
        raise DamagedCheckpointError(f"{location} has {size} bytes instead of {entry.size}")
    if (crc := checksum()) != entry.crc32c:
        raise DamagedCheckpointError(
            f"{location} has CRC32C {crc:08x} instead of {entry.crc32c:08x}"
        )


def _read_into(file: Any, size: int, targets: list[tuple[int, Array]]) -> int:
    """Fill the targets from their offsets, and return the CRC32C of the whole file."""
    crc, end = 0, 0
    for offset, target in [*targets, (size, np.empty(0, np.uint8))]:
        crc = _fill(file, np.empty(offset - end, np.uint8), crc)
        crc = _fill(file, target, crc)
        end = offset + len(target)
    return crc


def _fill(file: Any, target: Array, crc: int) -> int:
    """Read until `target` is full, and extend the checksum chunk by chunk."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done : done + _CHUNK])
        if not count:
            raise DamagedCheckpointError("a file was truncated while it was read")
        crc = google_crc32c.extend(crc, target[done : done + count])
        done += count
    return crc
