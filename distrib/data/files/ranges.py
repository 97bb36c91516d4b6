"""Reads ranges of bytes from data files: neighbours in one request, requests in parallel.

A request to an object store costs as much time as reading a few MiB, so ranges that lie close
together are read as one, with what lies between them. A file that is no longer what it was when it
was found is named.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from distrib.storage.errors import classify
from distrib.storage.find_files import FoundFile

Range = tuple[int, int, int]  # Number of the file, first byte, byte behind the last one.

_LOCAL_GAP, _REMOTE_GAP = 1 << 14, 1 << 19
_MAX_REQUEST = 1 << 24
_PARALLEL_REQUESTS = 16
# In seconds.
_CHECK_INTERVAL = 300.0


class FileRanges:
    """Byte ranges of files, all on the local disk or all in one store.

    Args:
        files: As they were found.
        check_interval: Seconds after which a file in a store is looked up again when it is read,
            to notice a change. A local one is with every request. Defaults to 300.
    """

    def __init__(self, files: Sequence[FoundFile], check_interval: float = _CHECK_INTERVAL) -> None:
        self.files = list(files)
        self._check_interval = check_interval
        self._is_local = files[0].location.local is not None
        self._checked = [time.monotonic()] * len(files)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range.

        Raises:
            ChangedFileError: If a file has changed since it was found, or is gone.
            OSError: If it cannot be read.
        """
        gap = _LOCAL_GAP if self._is_local else _REMOTE_GAP
        requests = merge_ranges(ranges, gap, _MAX_REQUEST)
        if self._is_local or len(requests) == 1:
            answers = [self._request(request) for request, _ in requests]
        else:
            with ThreadPoolExecutor(min(_PARALLEL_REQUESTS, len(requests)), "distrib-get") as pool:
                answers = list(pool.map(self._request, (request for request, _ in requests)))
        for number in {number for (number, _, _), _ in requests}:
            overdue = time.monotonic() - self._checked[number] > self._check_interval
            if self._is_local or overdue:
                self.check_unchanged(number)
        found = [b""] * len(ranges)
        for ((_, first, _), members), answer in zip(requests, answers, strict=True):
            for member in members:
                _, start, end = ranges[member]
                found[member] = answer[start - first : end - first]
        return found

    def read_one(self, number: int, start: int, end: int) -> bytes:
        """Return the bytes of one range; see `read`."""
        return self.read([(number, start, end)])[0]

    def check_unchanged(self, number: int) -> None:
        """Raise `ChangedFileError` if a file has changed since it was found, or is gone."""
        self.files[number].check_unchanged()
        self._checked[number] = time.monotonic()

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
