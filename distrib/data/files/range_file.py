"""`RangeFile`: a file object, for libraries that need one, over a function that reads ranges."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """A readable file that can be seeked.

    Args:
        read: Returns the bytes from an offset to another.
        size: Of the file, in bytes.
        window: Least number of bytes to read at once; what follows is then taken from memory.
            Defaults to `0`.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, window: int = 0) -> None:
        self._read, self._size, self._window_size = read, size, window
        self._position, self._start, self._window = 0, 0, b""

    def readable(self) -> bool:
        """Return `True`."""
        return True

    def seekable(self) -> bool:
        """Return `True`."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another offset, and return it; see `io.IOBase`."""
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = bases[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes: `size` of them unless the file ends before."""
        start = self._position
        end = self._size if size is None or size < 0 else min(self._size, start + size)
        if start >= end:
            return b""
        if not self._start <= start <= end <= self._start + len(self._window):
            window = self._read(start, min(self._size, max(end, start + self._window_size)))
            self._start, self._window = start, window
        self._position = end
        return self._window[start - self._start : end - self._start]

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, and return the number of bytes."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
