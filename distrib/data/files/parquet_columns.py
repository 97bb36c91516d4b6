"""Columns of Parquet files: which ones can be used, and how their values become rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distrib.errors import ConfigurationError
from distrib.storage.find_files import FoundFile

if TYPE_CHECKING:
    import pyarrow


def check_column(field: pyarrow.Field, first: pyarrow.Field, file: FoundFile) -> None:
    """Raise `ConfigurationError` unless a column can be used, and has the type of the first file.

    Args:
        field: Name and type of the column.
        first: The same of the first file.
        file: To name.
    """
    if field.type != first.type:
        raise ConfigurationError(
            f"{file}: column {field.name!r} is {field.type}, but {first.type} in the first file."
        )
    if not _is_usable(field.type):
        import pyarrow.types as types

        kind = "nested" if types.is_nested(field.type) else "of a type that tensors do not have"
        raise ConfigurationError(
            f"{file}: column {field.name!r} is {kind} ({field.type}); name the columns to read by "
            "`columns=[...]`, or write it as numbers, strings or lists of numbers."
        )


def check_no_null(column: pyarrow.ChunkedArray, name: str, first: int, file: FoundFile) -> None:
    """Raise `ValueError` if a value is missing, or one in a list.

    Args:
        column: Its values in a row group.
        name: Of the column.
        first: Number of the row group's first row in the file.
        file: To name.
    """
    row = _first_null(column)
    if row is not None:
        raise ValueError(
            f"{file}: column {name!r} has no value in row {first + row}; fill it when you write "
            "the file, or leave the column out by `columns=[...]`"
        )


def rows_of(table: pyarrow.Table, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return rows of a table as dicts of a value for each column."""
    taken = table.take(numbers)
    columns = [_values(taken.column(name).combine_chunks()) for name in table.column_names]
    return [
        dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)
    ]


def _first_null(column: pyarrow.ChunkedArray) -> int | None:
    if column.null_count:
        row: int = column.is_null().index(True).as_py()
        return row
    if _is_list(column.type) and column.combine_chunks().flatten().null_count:
        return next(i for i, row in enumerate(column) if row.values.null_count)
    return None


def _values(column: pyarrow.Array) -> Sequence[Any]:
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_list(column.type):
        return [row.values.to_numpy(zero_copy_only=False) for row in column]
    if _is_number(column.type):
        return list(column.to_numpy(zero_copy_only=False))
    values: list[Any] = column.to_pylist()
    return values


def _is_usable(type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(type):
        return _is_usable(type.value_type) and not _is_list(type.value_type)
    if _is_list(type):
        return _is_number(type.value_type)
    return (
        _is_number(type)
        or types.is_string(type)
        or types.is_large_string(type)
        or types.is_binary(type)
        or types.is_large_binary(type)
        or types.is_fixed_size_binary(type)
    )


def _is_list(type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)


def _is_number(type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_boolean(type) or types.is_integer(type) or types.is_floating(type)
