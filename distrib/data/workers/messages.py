"""Messages between two processes: small ones over a socket, large ones through shared memory.

The shared memory is a file without a name (`memfd_create`), which both processes have open. So
there is nothing to clean up: it vanishes with the last of them, however they end, while segments
with names in /dev/shm stay behind when the process that would remove them is killed. Its size is
not bounded by that of /dev/shm either, which is 64 MiB in a Docker container by default.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from collections.abc import Iterator
from typing import Any

# Linux holds packets of up to 200 KB between two sockets.
MAX_MESSAGE = 1 << 16
_INLINE = 1 << 15
# The space of a region in the file. It costs nothing until it is written to.
_REGION = 1 << 36
_ALIGNMENT = 64
_HEADER = struct.Struct("<QQ")  # Sizes of the table and of everything.


class Region:
    """A part of a shared file, mapped as far as it is used.

    Args:
        file: Descriptor of the file.
        number: Which of its regions, from 0.
    """

    def __init__(self, file: int, number: int) -> None:
        self._file = file
        self._offset = number * _REGION
        self._mapped: mmap.mmap | None = None

    def view(self, size: int) -> memoryview:
        """Return the first bytes of the region, at least 1.

        Raises:
            ValueError: If a region has no space for as many.
        """
        if self._mapped is None or len(self._mapped) < size:
            if size > _REGION:
                raise ValueError(f"{size} bytes at once are more than {_REGION}, the limit.")
            # Twice as much as before, because arrays that are still in use keep the old mapping.
            length = max(mmap.PAGESIZE, 1 << (size - 1).bit_length())
            self._mapped = mmap.mmap(self._file, length, offset=self._offset)
        return memoryview(self._mapped)[:size]


def shared_file(regions: int) -> int:
    """Return the descriptor of a new file without a name, with space for some regions."""
    file = os.memfd_create("distrib-data")
    os.truncate(file, regions * _REGION)
    return file


def pack(value: Any, region: Region) -> bytes:
    """Return the message for a value; what is large of it is written to the region.

    The contents of NumPy arrays are copied once.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    table, size = table_of(parts)
    header = _HEADER.pack(len(table), size)
    if len(header) + size <= _INLINE:
        content = bytearray(size)
        write_parts(memoryview(content), table, parts)
        return header + content
    write_parts(region.view(size), table, parts)
    return header


def unpack(message: bytes, region: Region) -> Any:
    """Return the value of a message.

    Arrays in it are views of the message or of the region, and hold until the next message with
    this region.
    """
    table_size, size = _HEADER.unpack_from(message)
    inline = len(message) > _HEADER.size
    content = memoryview(bytearray(message))[_HEADER.size :] if inline else region.view(size)
    pickled, *buffers = read_parts(content, table_size)
    return pickle.loads(pickled, buffers=buffers)


def table_of(parts: list[memoryview]) -> tuple[bytes, int]:
    """Return the table that stands before some parts, and the size of everything."""
    table = pickle.dumps([part.nbytes for part in parts])
    *_, (_, end) = _bounds([len(table), *(part.nbytes for part in parts)])
    return table, end


def write_parts(content: memoryview, table: bytes, parts: list[memoryview]) -> None:
    """Write a table and its parts."""
    everything = [memoryview(table), *parts]
    bounds = _bounds([part.nbytes for part in everything])
    for part, (start, end) in zip(everything, bounds, strict=True):
        content[start:end] = part


def read_parts(content: memoryview, table_size: int) -> list[memoryview]:
    """Return the parts that were written."""
    sizes = pickle.loads(content[:table_size])
    _, *bounds = _bounds([table_size, *sizes])
    return [content[start:end] for start, end in bounds]


def _bounds(sizes: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        yield start, start + size
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
