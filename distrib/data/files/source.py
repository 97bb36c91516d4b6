"""`FileSource`: what the sources of examples in files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from distrib.data.files.ranges import FileRanges, Range
from distrib.storage.find_files import FoundFile

_BLOCK_BYTES = 2 << 20
_FEWEST_BLOCKS = 256
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 12


class FileSource:
    """Examples in files, numbered over all files in the order of their paths.

    An object with random access as `cluster.dataset` takes them. Several examples at once are read
    faster than one by one. It may be used by several threads, and pickled.

    Attributes:
        sequential: Whether a file can only be read from its start, so that reading examples in
            random order would take about as much time for each as reading a whole file.
        block_size: Number of consecutive examples that make a few MiB, for reading in blocks. Of
            small data fewer, so that there are blocks enough to shuffle.
    """

    sequential = False
    block_size: int

    def __init__(self, ranges: FileRanges, counts: Sequence[int]) -> None:
        """Take the files, and the number of examples of each."""
        self._ranges = ranges
        self._first: npt.NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        size = sum(file.size for file in self._files)
        few_mib = round(_BLOCK_BYTES * len(self) / max(1, size))
        self.block_size = max(1, min(few_mib, len(self) // _FEWEST_BLOCKS))

    def __len__(self) -> int:
        """Return the number of examples in all files."""
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Any:
        """Return an example.

        Raises:
            IndexError: If there is no such example.
            ValueError: If it is damaged; names the file and the place.
            OSError: If its file has changed since this source was made, is gone, or cannot be read.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the examples at `indices`, in their order; the errors are those of one."""
        raise NotImplementedError

    def checksum(self) -> int:
        """Return a number by which other examples are told apart, also in files of the same names.

        The same bytes have the same checksum under another path, or written at another time. It
        covers the files' sizes, the number of examples in each, samples of bytes from all over
        them, and the ends of files, where compressed formats keep checksums and statistics.
        """
        sizes = np.array([file.size for file in self._files], np.int64)
        checksum = google_crc32c.value(repr([sizes.tolist(), self._first.tolist()]).encode())
        for part in self._ranges.read([*_spread(sizes), *_ends(sizes)]):
            checksum = google_crc32c.extend(checksum, part)
        return int(checksum)

    @property
    def _files(self) -> list[FoundFile]:
        return self._ranges.files

    def _places(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return the number of each example's file, and of the example in it."""
        wanted = np.asarray(indices, np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise IndexError(f"there is no example {outside[0]}; there are {len(self)}")
        files = np.searchsorted(self._first, wanted, side="right") - 1
        return list(zip(files.tolist(), (wanted - self._first[files]).tolist(), strict=True))

    def _by_file(self, indices: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
        """Return, for each file, pairs of an example's number in it and its place in `indices`."""
        found: dict[int, list[tuple[int, int]]] = {}
        for place, (file, number) in enumerate(self._places(indices)):
            found.setdefault(file, []).append((number, place))
        return found


def _spread(sizes: npt.NDArray[np.int64]) -> list[Range]:
    """Return ranges from all over the files."""
    first = np.cumsum([0, *sizes])
    samples = (2 * np.arange(_SAMPLES) + 1) * int(first[-1]) // (2 * _SAMPLES)
    files = np.searchsorted(first, samples, side="right") - 1
    return [
        (int(file), int(start), int(min(start + _SAMPLE_BYTES, sizes[file])))
        for file, start in zip(files, samples - first[files], strict=True)
    ]


def _ends(sizes: npt.NDArray[np.int64]) -> list[Range]:
    """Return the end of each file, or of some spread over them."""
    files = np.unique(np.linspace(0, len(sizes) - 1, min(_SAMPLES, len(sizes))).astype(np.int64))
    return [(int(f), int(max(0, sizes[f] - _SAMPLE_BYTES)), int(sizes[f])) for f in files]
