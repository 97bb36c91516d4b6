"""`ParquetSource`: Parquet files as a source, read by pyarrow, a row group at a time.

A row group is the least that can be read of a Parquet file, so those used last are kept. Files are
read through `FileRanges` rather than pyarrow's own file systems, which know fewer stores, other
options for them, and no retries as checkpoints have them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from distrib.data.files.parquet_columns import check_column, check_no_null, rows_of
from distrib.data.files.range_file import RangeFile
from distrib.data.files.ranges import FileRanges
from distrib.data.files.record_source import Paths
from distrib.data.files.shared_cache import SharedCache
from distrib.data.files.source import FileSource
from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.storage.find_files import find_files, unreadable
from distrib.units import format_size

_PARALLEL_FILES = 16
_KEPT_BYTES = 256 << 20
_LARGE_GROUP = 128 << 20


class ParquetSource(FileSource):
    """The rows of Parquet files, in any order. Needs `pip install "distrib[parquet]"`.

    A row is a dict of its columns: numbers and booleans keep their dtype, strings are `str`, binary
    values `bytes`, lists of numbers one-dimensional arrays. Other columns (structs, lists of lists,
    dates, decimals) and empty values (nulls) are refused; leave such columns out by `columns`.

    The least that can be read is a row group. So write files with row groups of a few MiB
    (`row_group_size=...`) and shuffle in blocks (`shuffle="blocks"`), unless the data fit into
    256 MiB of memory, where row groups that were read stay.

    Args:
        paths: Paths, fsspec URLs or patterns such as `"s3://bucket/train-*.parquet"`, one or a
            list. Rows are numbered in the order of the sorted paths.
        columns: Names of the columns to read. Defaults to `None`: all.
        storage_options: Passed to fsspec's file system. Defaults to `None`.

    Raises:
        ConfigurationError: If the package is not installed, there is no such file, one cannot be
            read or is no Parquet file, files differ in their columns, or a column cannot be used.

    Example:

    ```python
    from distrib.data import ParquetSource

    source = ParquetSource("s3://bucket/train-*.parquet", columns=["pixels", "label"])
    train = cluster.dataset(
        source, batch_size=128, shuffle="blocks", map=lambda row: (row["pixels"], row["label"])
    )
    ```
    """

    def __init__(
        self,
        paths: Paths,
        *,
        columns: Sequence[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        _parquet()
        files = find_files(paths, "paths", storage_options)
        self._ranges = FileRanges(files, keep=False)
        with ThreadPoolExecutor(_PARALLEL_FILES, "distrib-index") as pool:
            self._footers = list(pool.map(self._read_footer, range(len(files))))
        self._groups = [
            np.cumsum([0, *(f.row_group(i).num_rows for i in range(f.num_row_groups))])
            for f in self._footers
        ]
        super().__init__(self._ranges, [footer.num_rows for footer in self._footers])
        if len(self) == 0:
            raise ConfigurationError("`paths`: the Parquet files have no rows.")
        self._columns = self._check_columns(columns)
        self._cache: SharedCache[tuple[int, int], Any] = SharedCache(_KEPT_BYTES, _size_of)
        self.block_size = max(int(np.diff(groups).max(initial=1)) for groups in self._groups)
        self._warn_of_large_groups()
        self._check_nulls()

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows at `indices`; see `FileSource`."""
        rows: list[dict[str, Any]] = [{}] * len(indices)
        for file, wanted in self._by_file(indices).items():
            groups: dict[int, list[tuple[int, int]]] = {}
            for number, place in wanted:
                group = int(np.searchsorted(self._groups[file], number, side="right")) - 1
                groups.setdefault(group, []).append((number - self._groups[file][group], place))
            for group, members in groups.items():
                table = self._group(file, group)
                taken = rows_of(table, [number for number, _ in members])
                for (_, place), row in zip(members, taken, strict=True):
                    rows[place] = row
        return rows

    def _group(self, file: int, group: int) -> Any:
        return self._cache.get((file, group), lambda: self._read_group(file, group, self._columns))

    def _read_group(self, file: int, group: int, columns: list[str]) -> Any:
        opened = self._open(file, self._footers[file])
        try:
            table = opened.read_row_group(group, columns=columns, use_threads=False)
        except Exception as error:
            if not _is_damage(error):
                raise
            self._ranges.check_unchanged(file)
            raise ValueError(
                f"{self._files[file]}: row group {group} is damaged ({error})"
            ) from error
        first = int(self._groups[file][group])
        for name in columns:
            check_no_null(table.column(name), name, first, self._files[file])
        return table

    def _read_footer(self, file: int) -> Any:
        found = self._files[file]
        if found.size == 0:
            raise ConfigurationError(f"{found} is empty, not a Parquet file.")
        try:
            return self._open(file, None).metadata
        except Exception as error:
            if _is_damage(error):
                problem = f"is truncated, damaged or no Parquet file ({error})"
                raise ConfigurationError(f"{found} {problem}.") from error
            if isinstance(error, OSError):
                raise unreadable(str(found), error, found.location) from error
            raise

    def _open(self, file: int, footer: Any) -> Any:
        content = RangeFile(partial(self._ranges.read_one, file), self._files[file].size)
        # Fetches all columns of a row group in one piece.
        return _parquet().ParquetFile(
            content, metadata=footer, pre_buffer=True, page_checksum_verification=True
        )

    def _check_columns(self, columns: Sequence[str] | None) -> list[str]:
        schemas = [footer.schema.to_arrow_schema() for footer in self._footers]
        chosen = list(schemas[0].names if columns is None else columns)
        for file, schema in zip(self._files, schemas, strict=True):
            if columns is None and schema.names != schemas[0].names:
                more = ", ".join(sorted({*schema.names} ^ {*schemas[0].names}))
                raise ConfigurationError(
                    f"{file} and {self._files[0]} differ in their columns ({more or 'the order'}); "
                    "name those to read by `columns=[...]`."
                )
            for name in chosen:
                if name not in schema.names:
                    close = difflib.get_close_matches(name, schema.names, n=1) or schema.names
                    raise ConfigurationError(
                        f"`columns`: {file} has no column {name!r}; it has {', '.join(close)}."
                    )
                check_column(schema.field(name), schemas[0].field(name), file)
        return chosen

    def _check_nulls(self) -> None:
        """Read the first row group that has an empty value, as far as footers tell."""
        for file, footer in enumerate(self._footers):
            for group in range(footer.num_row_groups):
                described = footer.row_group(group)
                for number in range(described.num_columns):
                    column = described.column(number)
                    # Not of lists, whose empty ones count as well.
                    name = column.path_in_schema
                    statistics = column.statistics if name in self._columns else None
                    if statistics is not None and statistics.null_count:
                        try:
                            self._read_group(file, group, [name])
                        except ValueError as error:
                            raise ConfigurationError(str(error)) from error

    def _warn_of_large_groups(self) -> None:
        largest = max(
            footer.row_group(group).total_byte_size
            for footer in self._footers
            for group in range(footer.num_row_groups)
        )
        if largest > _LARGE_GROUP and len(self) > self.block_size:
            log.warning(
                f"the Parquet files have row groups of {format_size(largest)}, each of which must "
                f"be read as a whole. Write them with row_group_size="
                f"{max(1, self.block_size * (4 << 20) // largest)} for row groups of 4 MiB."
            )


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            'Parquet files need the package pyarrow: pip install "distrib[parquet]".'
        ) from error
    return pyarrow.parquet


def _is_damage(error: Exception) -> bool:
    """Tell whether pyarrow could not make sense of bytes, which it reports in two ways."""
    import pyarrow

    return isinstance(error, pyarrow.ArrowException) or (
        type(error) is OSError and error.errno is None
    )


def _size_of(table: Any) -> int:
    return int(table.nbytes)
