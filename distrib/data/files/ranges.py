"""Reads ranges of bytes from data files: neighbours in one request, requests in parallel.

A request to an object store costs as much time as reading a few MiB, so ranges that lie close
together are read as one, with what lies between them; and small files stay in memory, in parts of a
few MiB, as they are read. A file that is no longer what it was when it was found is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from distrib.data.files.shared_cache import SharedCache
from distrib.storage.errors import classify
from distrib.storage.find_files import FoundFile

T = TypeVar("T")
Result = TypeVar("Result")
Range = tuple[int, int, int]  # Number of the file, first byte, byte behind the last one.

_LOCAL_GAP, _REMOTE_GAP = 1 << 14, 1 << 19
_MAX_REQUEST = 1 << 24
_PARALLEL_REQUESTS = 16
# Files in a store that have no more bytes together stay in memory, in parts of this size.
_KEPT_BYTES, _PART = 256 << 20, 4 << 20
# In seconds.
_CHECK_INTERVAL = 300.0


class FileRanges:
    """Byte ranges of files, all on the local disk or all in one store.

    Args:
        files: As they were found.
        check_interval: Seconds after which a file in a store is looked up again when it is read,
            to notice a change. A local one is with every request. Defaults to 300.
        keep: Whether files in a store stay in memory if they have 256 MiB together, or less. Not
            needed where what is made of them stays. Defaults to `True`.
    """

    def __init__(
        self,
        files: Sequence[FoundFile],
        check_interval: float = _CHECK_INTERVAL,
        keep: bool = True,
    ) -> None:
        self.files = list(files)
        self._check_interval = check_interval
        self._is_local = files[0].location.local is not None
        self._checked = [time.monotonic()] * len(files)
        small = sum(file.size for file in files) <= _KEPT_BYTES
        # By number of the file and first byte.
        self._kept: SharedCache[tuple[int, int], bytes] | None = None
        if keep and small and not self._is_local:
            self._kept = SharedCache(_KEPT_BYTES, len)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range.

        Raises:
            ChangedFileError: If a file has changed since it was found, or is gone.
            OSError: If it cannot be read.
        """
        found = self._read(ranges) if self._kept is None else self._read_kept(ranges, self._kept)
        for number in {number for number, _, _ in ranges}:
            overdue = time.monotonic() - self._checked[number] > self._check_interval
            if self._is_local or overdue:
                self.check_unchanged(number)
        return found

    def read_one(self, number: int, start: int, end: int) -> bytes:
        """Return the bytes of one range; see `read`."""
        return self.read([(number, start, end)])[0]

    def check_unchanged(self, number: int) -> None:
        """Raise `ChangedFileError` if a file has changed since it was found, or is gone."""
        self.files[number].check_unchanged()
        self._checked[number] = time.monotonic()

    def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        requests = merge_ranges(ranges, _LOCAL_GAP if self._is_local else _REMOTE_GAP, _MAX_REQUEST)
        get = map if self._is_local else _in_parallel
        answers = list(get(self._request, [request for request, _ in requests]))
        found = [b""] * len(ranges)
        for ((_, first, _), members), answer in zip(requests, answers, strict=True):
            for member in members:
                _, start, end = ranges[member]
                found[member] = answer[start - first : end - first]
        return found

    def _read_kept(
        self, ranges: Sequence[Range], kept: SharedCache[tuple[int, int], bytes]
    ) -> list[bytes]:
        def part(key: tuple[int, int]) -> bytes:
            number, first = key
            end = min(first + _PART, self.files[number].size)
            return kept.get(key, lambda: self._request((number, first, end)))

        for number, _, end in ranges:
            if end > self.files[number].size:
                raise OSError(f"{self.files[number]} ends before byte {end}")
        keys = {(number, first) for number, *span in ranges for first in _parts(*span)}
        missing = sorted(key for key in keys if key not in kept)
        parts = dict(zip(missing, _in_parallel(part, missing), strict=True))
        parts |= {key: part(key) for key in keys - parts.keys()}
        return [
            b"".join(
                parts[number, first][max(0, start - first) : end - first]
                for first in _parts(start, end)
            )
            for number, start, end in ranges
        ]

    def _request(self, request: Range) -> bytes:
        number, start, end = request
        try:
            content = self.files[number].location.read_range(start, end)
        except OSError as error:
            if not classify(error).transient:  # Some stores refuse a range behind a file's end.
                self.check_unchanged(number)
            raise
        if len(content) < end - start:
            self.check_unchanged(number)
            raise OSError(f"{self.files[number]} ends before byte {end}")
        return content


def _in_parallel(function: Callable[[T], Result], items: Sequence[T]) -> list[Result]:
    """Return the results of requests that are made at once, a few at a time."""
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(_PARALLEL_REQUESTS, len(items)), "distrib-get") as pool:
        return list(pool.map(function, items))


def _parts(start: int, end: int) -> range:
    """Return the first byte of each part that a range touches."""
    return range(start - start % _PART, end, _PART)


def merge_ranges(
    ranges: Sequence[Range], max_gap: int, max_size: int
) -> list[tuple[Range, list[int]]]:
    """Return larger ranges that contain the given ones, each with the positions of those.

    Args:
        ranges: In any order; they may overlap.
        max_gap: Number of bytes between two ranges up to which they become one.
        max_size: Number of bytes up to which ranges are joined. A single range may have more.

    Example:
    >>> merge_ranges([(0, 30, 40), (0, 0, 10), (0, 12, 20)], max_gap=5, max_size=100)
    [((0, 0, 20), [1, 2]), ((0, 30, 40), [0])]
    """
    merged: list[tuple[Range, list[int]]] = []
    for position in sorted(range(len(ranges)), key=lambda position: ranges[position]):
        number, start, end = ranges[position]
        if merged:
            (last, first, last_end), members = merged[-1]
            joined = max(end, last_end)
            if number == last and start - last_end <= max_gap and joined - first <= max_size:
                members.append(position)
                merged[-1] = ((last, first, joined), members)
                continue
        merged.append(((number, start, end), [position]))
    return merged
