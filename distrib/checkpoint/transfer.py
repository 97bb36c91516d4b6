"""Moves a checkpoint's files between memory and a store, checking every byte on the way.

Several files travel at once, because one stream to an object store is slow and one thread's copying
leaves a disk waiting. Each is at most `layout.PART` bytes (or one row of an array), so what is held
in memory beside the state is bounded: `WORKERS` files.

On the local disk large files are written with O_DIRECT where the file system takes it. The bytes
then go from the buffer to the disk without a copy by the kernel, which would cost several times the
CPU and push the training's data out of the page cache; a checkpoint is hardly ever read back.
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

from distrib.checkpoint.layout import PART, Array
from distrib.checkpoint.manifest import DamagedCheckpointError, FileEntry
from distrib.checkpoint.orbax_format import DataFile
from distrib.storage.local_files import fsync
from distrib.storage.location import Location

T = TypeVar("T")
S = TypeVar("S")

WORKERS = 8
LOCAL_WORKERS = 2
_DIRECT_FROM = 1 << 20
_BLOCK = 4096
_CHUNK = 4 << 20
_CACHED = 256 << 10
_NICE = 2
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def write(files: Sequence[DataFile], folder: Location, cache: Path | None) -> tuple[FileEntry, ...]:
    """Write files durably and return what a manifest says of them, by path.

    Args:
        files: To write below `folder`, which holds nothing that matters.
        folder: Anywhere.
        cache: Local folder for a second copy; `None` for none.
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
        content = _joined(file)
        if cache is not None:
            (cache / file.path).write_bytes(content)
        (folder / file.path).write_bytes(content)
        return FileEntry(file.path, len(content), google_crc32c.value(content))

    if local is None:
        # What takes the processor here is the store's library, in a thread of its own.
        entries = each(put, files, WORKERS)
    else:
        entries = each(put, files, LOCAL_WORKERS, _yield_to_training)
        for name in sorted({"", *_parents(folders)}, reverse=True):
            fsync(local / name)
    return tuple(sorted(entries, key=lambda entry: entry.path))


def read(
    entries: Iterable[FileEntry],
    folder: Location,
    cache: Path | None,
    into: Mapping[str, list[tuple[int, Array]]],
) -> dict[str, Array]:
    """Read files, compare them with their checksums, and return those that have no destination.

    What is returned has shape (n,), uint8, and may be read-only.

    Args:
        entries: What the manifest says of them.
        folder: Where they are.
        cache: Local folder that may hold copies, which are taken where they are sound.
        into: By path, the offsets and the memory to fill, shape (n,) uint8.

    Raises:
        DamagedCheckpointError: Names the first file that is missing, short or changed.
    """

    def get(entry: FileEntry) -> tuple[str, Array]:
        parts = into.get(entry.path)
        if cache is not None:
            try:
                return entry.path, _read_local(cache / entry.path, entry, parts)
            except DamagedCheckpointError:
                pass  # A copy that a killed process left half written; the store has the original.
        return entry.path, _read(folder / entry.path, entry, parts)

    workers = WORKERS if folder.local is None else LOCAL_WORKERS
    contents = dict(each(get, list(entries), workers))
    return {path: content for path, content in contents.items() if path not in into}


def each(
    work: Callable[[S], T],
    items: Sequence[S],
    workers: int,
    prepare: Callable[[], None] | None = None,
) -> list[T]:
    """Do `work` for every item, several at a time, in order; the first error ends it.

    Args:
        work: Called with an item.
        items: All of them.
        workers: Number of threads.
        prepare: Called once in each of the threads.
    """
    with ThreadPoolExecutor(workers, "distrib-transfer", initializer=prepare) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _yield_to_training() -> None:
    """Let training have the processor first; on Linux threads have a priority of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _parents(folders: Iterable[str]) -> set[str]:
    """The folders and all that they lie in."""
    return {
        "/".join(parts[:depth])
        for parts in (folder.split("/") for folder in folders)
        for depth in range(1, len(parts) + 1)
    }


def _joined(file: DataFile) -> bytes:
    pieces: list[memoryview | bytes] = []
    end = 0
    for offset, data in file.parts:
        pieces += [bytes(offset - end), data.data]
        end = offset + len(data)
    return b"".join([*pieces, bytes(file.size - end)])


def _write_local(path: Path, file: DataFile) -> FileEntry:
    """Write one new file, a large one through a buffer that the disk can read directly."""
    if file.size < _DIRECT_FROM:
        content = _joined(file)
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
            _write_all(path, buffer.data, 0)  # This file system does not know direct writes.
        os.truncate(path, file.size)
        return FileEntry(file.path, file.size, crc)


def _copy(file: DataFile, buffer: Array) -> int:
    """Copy a file into a buffer, zeros behind it, and return its CRC32C."""
    crc, end = 0, 0
    for offset, data in [*file.parts, (file.size, np.empty(0, np.uint8))]:
        buffer[end:offset] = 0
        crc = google_crc32c.extend(crc, buffer[end:offset])
        for start in range(0, len(data), _CACHED):
            chunk = buffer[offset + start : offset + min(start + _CACHED, len(data))]
            chunk[:] = data[start : start + _CACHED]
            crc = google_crc32c.extend(crc, chunk)  # While the processor's cache has it.
        end = offset + len(data)
    buffer[end:] = 0
    return crc


_free_buffers: list[mmap.mmap] = []


@contextmanager
def _buffer(size: int) -> Iterator[mmap.mmap]:
    """Lend memory that begins with a page. What is given back is lent again, its pages in place."""
    if size > PART:  # A row of an array that is larger than any other file.
        yield mmap.mmap(-1, size)
        return
    try:
        memory = _free_buffers.pop()
    except IndexError:
        memory = mmap.mmap(-1, PART)
    try:
        yield memory
    finally:
        _free_buffers.append(memory)


def _write_all(path: Path, rest: memoryview, flags: int) -> None:
    """Write and flush."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
    try:
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(place: Location, entry: FileEntry, parts: list[tuple[int, Array]] | None) -> Array:
    if place.local is not None:
        return _read_local(place.local, entry, parts)
    try:
        content = np.frombuffer(place.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{place} is missing") from error
    _check(place, entry, len(content), lambda: google_crc32c.value(content))
    for offset, target in parts or []:
        target[:] = content[offset : offset + len(target)]
    return content


def _read_local(path: Path, entry: FileEntry, parts: list[tuple[int, Array]] | None) -> Array:
    """Read without a buffer between, as a file of the local disk can be."""
    content = np.empty(entry.size if parts is None else 0, np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            targets = [(0, content)] if parts is None else parts
            _check(path, entry, size, lambda: _read_into(file, size, targets))
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing") from error
    return content


def _check(place: object, entry: FileEntry, size: int, checksum: Callable[[], int]) -> None:
    if size != entry.size:
        raise DamagedCheckpointError(f"{place} has {size} bytes instead of {entry.size}")
    if (crc := checksum()) != entry.crc32c:
        raise DamagedCheckpointError(f"{place} has CRC32C {crc:08x} instead of {entry.crc32c:08x}")


def _read_into(file: Any, size: int, targets: list[tuple[int, Array]]) -> int:
    """Fill the targets from their offsets on, and return the CRC32C of the whole file."""
    crc, end = 0, 0
    for offset, target in [*targets, (size, np.empty(0, np.uint8))]:
        crc = _fill(file, np.empty(offset - end, np.uint8), crc)
        crc = _fill(file, target, crc)
        end = offset + len(target)
    return crc


def _fill(file: Any, target: Array, crc: int) -> int:
    """Read until `target` is full, and extend the checksum while the bytes are in the cache."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done : done + _CHUNK])
        if not count:
            raise DamagedCheckpointError("a file became shorter while it was read")
        crc = google_crc32c.extend(crc, target[done : done + count])
        done += count
    return crc
