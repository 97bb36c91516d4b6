"""`RecordSource`: examples that are ranges of bytes, which an index tells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distrib.data.files.ranges import FileRanges
from distrib.data.files.record_index import RecordError, RecordFormat, open_index
from distrib.data.files.source import FileSource
from distrib.errors import ConfigurationError
from distrib.storage.find_files import find_files
from distrib.storage.locate import locate

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class RecordSource(FileSource):
    """Base of such sources.

    Args:
        paths: Paths, URLs or patterns of the files to read, one or a list.
        format: Of the files.
        index_dir: Folder for the index, or `None`; see `open_index`.
        storage_options: For the file system of the files, and of `index_dir` if that is a URL.
    """

    def __init__(
        self,
        paths: Paths,
        format: RecordFormat,
        index_dir: str | os.PathLike[str] | None,
        storage_options: dict[str, Any] | None,
    ) -> None:
        files = find_files(paths, "paths", storage_options)
        folder = None
        if index_dir is not None:
            remote = "://" in os.fspath(index_dir)
            folder = locate(index_dir, "index_dir", storage_options if remote else None)
        self._index = open_index(files, folder, format)
        super().__init__(FileRanges(files), self._index.counts)
        if len(self) == 0:
            raise ConfigurationError(f"`paths`: the {format.name} files have no records.")

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the examples at `indices`; see `FileSource`."""
        ranges = [
            (file, *self._index.bounds(file, number)) for file, number in self._places(indices)
        ]
        contents = self._read(ranges)
        return [self._checked(*parts) for parts in zip(contents, ranges, strict=True)]

    def _read(self, ranges: list[tuple[int, int, int]]) -> list[bytes]:
        return self._ranges.read(ranges)

    def _parse(self, content: bytes, offset: int) -> Any:
        """Return the example that a range of bytes holds, or raise `RecordError`."""
        raise NotImplementedError

    def _checked(self, content: bytes, place: tuple[int, int, int]) -> Any:
        file, start, _ = place
        try:
            return self._parse(content, start)
        except RecordError as error:
            self._ranges.check_unchanged(file)
            raise ValueError(f"{self._files[file]}: {error}; the file is damaged") from error
