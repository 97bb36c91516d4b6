"""`GzipTFRecordSource`: compressed TFRecord files, which can only be read from their start.

The index keeps where records are in the decompressed file. A reader decompresses a file up to the
record that is asked for, and keeps the last bytes, because batches that are read in parallel ask
for records a little out of order.
"""

from __future__ import annotations

import gzip
import io
import os
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from distrib.data.files.range_file import RangeFile
from distrib.data.files.record_index import RecordError, RecordFormat, Scanned
from distrib.data.files.record_source import Paths, RecordSource
from distrib.data.files.tfrecord_format import FOOTER_SIZE, HEADER_SIZE, content_length, content_of

_CHUNK = 1 << 20
# Decompressed bytes that a reader keeps, and files that are read at the same time.
_KEPT_BYTES = 32 << 20
_OPEN_FILES = 4


class GzipTFRecordSource(RecordSource):
    """The records of GZIP-compressed TFRecord files, in their order.

    A compressed file can only be read from its start. So the records are read one after the other
    (`shuffle=False`), or in blocks of the length of a file (`shuffle="blocks"`); a random order
    over all records (`shuffle=True`) is refused. A resumed run, and a worker or rank that needs
    only some of a file's records, decompresses that file from its start. Prefer files that are not
    compressed, or whose records are (JPEG, FLAC).

    All files are decompressed once, to count their records. The index is kept as for
    `TFRecordSource`. Checksums of records are verified.

    Args:
        paths: Paths, fsspec URLs or patterns such as `"gs://bucket/train-*.tfrecord.gz"`, one or a
            list. Records are numbered in the order of the sorted paths.
        index_dir: Folder for the index, a path or a URL. Defaults to `None`: beside the first
            file, as `.distrib-index-*`, or, if that cannot be written, in `~/.cache/distrib`.
        storage_options: Passed to fsspec's file system, for the data and for `index_dir` on a URL.
            Defaults to `None`.

    Raises:
        ConfigurationError: If there is no such file, or one cannot be read, is not compressed,
            truncated or damaged, or holds no TFRecords.

    Example:

    ```python
    from distrib.data import GzipTFRecordSource

    source = GzipTFRecordSource("gs://bucket/train-*.tfrecord.gz")
    train = cluster.dataset(source, batch_size=128, map=parse)
    ```
    """

    sequential = True

    def __init__(
        self,
        paths: Paths,
        *,
        index_dir: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(paths, _FORMAT, index_dir, storage_options)
        # A block costs as much as its file, so a block is a file if all hold equally many records,
        # as shards do; otherwise it is as long as the longest, and few blocks touch three files.
        self.block_size = max(self._index.counts)
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open."""
        return {**self.__dict__, "_readers": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a lock of one's own."""
        self.__dict__.update(state, _lock=threading.Lock())

    def _read(self, ranges: list[tuple[int, int, int]]) -> list[bytes]:
        contents = [b""] * len(ranges)
        for place in sorted(range(len(ranges)), key=lambda place: ranges[place]):
            file, start, end = ranges[place]
            try:
                contents[place] = self._reader(file).read(start, end)
            except RecordError as error:
                self._ranges.check_unchanged(file)
                raise ValueError(f"{self._files[file]}: {error}; the file is damaged") from error
        return contents

    def _parse(self, content: bytes, offset: int) -> bytes:
        return content_of(content, offset)

    def _reader(self, file: int) -> _Reader:
        with self._lock:
            reader = self._readers.get(file)
            if reader is None:
                reader = _Reader(partial(self._ranges.read_one, file), self._files[file].size)
                self._readers[file] = reader
            self._readers.move_to_end(file)
            if len(self._readers) > _OPEN_FILES:
                self._readers.popitem(last=False)
            return reader


class _Reader:
    """Reads a decompressed file from its start; goes back a little at no cost."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._open: Callable[[], gzip.GzipFile] = partial(_decompressed, read, size)
        self._lock = threading.Lock()
        self._restart()

    def read(self, start: int, end: int) -> bytes:
        """Return the decompressed bytes from an offset to another."""
        with self._lock:
            if start < self._start:
                self._restart()
            try:
                while self._end < end:
                    self._append(_read(self._file, _CHUNK), start)
            except BaseException:
                self._restart()  # Where the file stands now is not known.
                raise
            return self._take(start, end)

    def _restart(self) -> None:
        self._file = self._open()
        self._chunks: deque[bytes] = deque()
        self._start = self._end = 0

    def _append(self, chunk: bytes, needed: int) -> None:
        if not chunk:
            raise RecordError("it ends before its last record")
        self._chunks.append(chunk)
        self._end += len(chunk)
        while (
            self._end - self._start > _KEPT_BYTES and self._start + len(self._chunks[0]) <= needed
        ):
            self._start += len(self._chunks.popleft())

    def _take(self, start: int, end: int) -> bytes:
        parts, offset = [], self._start
        for chunk in self._chunks:
            if offset + len(chunk) > start and offset < end:
                parts.append(chunk[max(0, start - offset) : end - offset])
            offset += len(chunk)
        return b"".join(parts)


def _scan(read: Callable[[int, int], bytes], size: int, window_size: int) -> Scanned:
    file = _decompressed(read, size)
    ends: list[int] = []
    position = 0
    while header := _read(file, HEADER_SIZE):
        length = content_length(header, position) + FOOTER_SIZE
        if len(_read(file, length)) < length:
            raise RecordError("it is truncated within its last record")
        position += HEADER_SIZE + length
        ends.append(position)
    return Scanned(np.array(ends, np.int64))


def _decompressed(read: Callable[[int, int], bytes], size: int) -> gzip.GzipFile:
    window = io.BufferedReader(RangeFile(read, size), 4 * _CHUNK)
    return gzip.GzipFile(fileobj=window, mode="rb")


def _read(file: gzip.GzipFile, size: int) -> bytes:
    try:
        return file.read(size)
    except EOFError as error:
        raise RecordError("it is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RecordError(f"it is damaged, or not compressed by GZIP ({error})") from error


_FORMAT = RecordFormat("compressed TFRecord", _scan)
