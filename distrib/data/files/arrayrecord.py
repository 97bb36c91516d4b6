"""`ArrayRecordSource`: ArrayRecord files as a source, read by the package `array_record`.

That package reads local files only, and the format has no specification by which to read it from
a store. So the files of a store are copied to a folder that the user names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distrib.data.files.local_copies import local_copies
from distrib.data.files.ranges import FileRanges
from distrib.data.files.record_source import Paths
from distrib.data.files.source import FileSource
from distrib.errors import ConfigurationError
from distrib.storage.find_files import FoundFile, find_files
from distrib.storage.locate import locate
from distrib.units import format_size

_PARALLEL_FILES = 16


class ArrayRecordSource(FileSource):
    """The records of ArrayRecord files, in any order. Needs `pip install "distrib[arrayrecord]"`.

    The format has a table of contents and checksums of its own. For random order write the files
    with `group_size:1`: records of one group are decompressed together.

    Args:
        paths: Paths, fsspec URLs or patterns such as `"data/train-*.arrayrecord"`, one or a list.
            Records are numbered in the order of the sorted paths.
        cache_dir: Local folder that the files are copied to if they are in a store, because
            `array_record` reads local files only. Processes of one machine share the copies.
            Defaults to `None`: files in a store are refused.
        storage_options: Passed to fsspec's file system. Defaults to `None`.

    Raises:
        ConfigurationError: If the package is not installed, there is no such file, or one cannot
            be read or copied, or is no ArrayRecord file.

    Example:

    ```python
    from distrib.data import ArrayRecordSource

    source = ArrayRecordSource("gs://bucket/train-*.arrayrecord", cache_dir="/scratch/train")
    train = cluster.dataset(source, batch_size=128, shuffle=True, map=parse)
    ```
    """

    def __init__(
        self,
        paths: Paths,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        _reader_class()
        files = find_files(paths, "paths", storage_options)
        if files[0].location.local is None:
            files = _copied(files, cache_dir)
        with ThreadPoolExecutor(_PARALLEL_FILES, "distrib-index") as pool:
            self._readers = list(pool.map(_open, files))
        super().__init__(FileRanges(files), [len(reader) for reader in self._readers])
        if len(self) == 0:
            raise ConfigurationError("`paths`: the ArrayRecord files have no records.")

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records at `indices`; see `FileSource`."""
        records = [b""] * len(indices)
        for file, wanted in self._by_file(indices).items():
            try:
                found = self._readers[file].__getitems__([number for number, _ in wanted])
            except (RuntimeError, ValueError, IndexError) as error:
                self._ranges.check_unchanged(file)
                raise ValueError(
                    f"{self._files[file]}: {str(error).strip()}; the file is damaged"
                ) from error
            self._ranges.check_unchanged(file)
            for (_, place), record in zip(wanted, found, strict=True):
                records[place] = record
        return records


def _reader_class() -> Any:
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ImportError as error:
        raise ConfigurationError(
            'ArrayRecord files need the package array_record: pip install "distrib[arrayrecord]".'
        ) from error
    return ArrayRecordDataSource


def _open(file: FoundFile) -> Any:
    try:
        return _reader_class()(file.location.path)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{file} is empty, truncated or no ArrayRecord file: {str(error).strip()}"
        ) from error


def _copied(
    files: Sequence[FoundFile], cache_dir: str | os.PathLike[str] | None
) -> list[FoundFile]:
    if cache_dir is None:
        size = format_size(sum(file.size for file in files))
        raise ConfigurationError(
            f"`paths`: {files[0]} is in a store, and ArrayRecord files can only be read from a "
            f"local disk. Pass `cache_dir=...`, a folder to copy them to ({size} in all), mount "
            "the bucket, or use TFRecord files."
        )
    folder = locate(cache_dir, "cache_dir")
    if folder.local is None:
        raise ConfigurationError(f"`cache_dir={str(cache_dir)!r}` must be a local folder.")
    return local_copies(files, folder.local)
