"""Nested structures of arrays, converted to what TensorFlow can hold.

As in `tf.data`, tuples and dicts are structure; everything else is an array or is converted to one,
lists included. Strings become object arrays of bytes, because NumPy's own string dtypes cut off
trailing zero bytes.

Worker processes use this module without TensorFlow, which takes seconds and much memory to import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from distrib.errors import ConfigurationError

Array = npt.NDArray[Any]


def leaves_with_paths(structure: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for all leaves in the order of `tf.nest`; a path looks like `[0]['x']`."""
    if isinstance(structure, Mapping):
        for key in sorted(structure):
            yield from leaves_with_paths(structure[key], f"{path}[{key!r}]")
    elif isinstance(structure, tuple):
        for i, part in enumerate(structure):
            yield from leaves_with_paths(part, f"{path}[{i}]")
    else:
        yield path, structure


def is_in_memory(leaf: Any) -> bool:
    """Tell whether this is an array with its data in memory: NumPy, TensorFlow, pandas, ..."""
    if isinstance(leaf, np.memmap):
        return False
    tf = _loaded_tensorflow()
    return (
        isinstance(leaf, np.ndarray)
        or (tf is not None and isinstance(leaf, tf.Tensor | tf.Variable))
        or any(hasattr(leaf, name) for name in ("__dlpack__", "to_numpy"))
    )


def is_on_disk(leaf: Any) -> bool:
    """Tell whether this is an array on disk that loads only the parts that are indexed."""
    if is_in_memory(leaf) or isinstance(leaf, np.generic):
        return False
    return all(hasattr(leaf, name) for name in ("shape", "dtype", "__len__", "__getitem__"))


def to_arrays(structure: Any, keep_on_disk: bool = False) -> Any:
    """Return the structure with NumPy arrays as leaves.

    Python's floats, also in lists, become float32, and its ints int64. Arrays keep their dtype.

    Args:
        structure: Arrays, or values that can be converted to arrays, alone or nested in tuples and
            dicts.
        keep_on_disk: Whether to keep arrays on disk as they are instead of loading them. Defaults
            to `False`.

    Raises:
        ConfigurationError: If a leaf cannot be converted to an array of a dtype that TensorFlow
            supports.
    """
    return _map_leaves(
        lambda path, leaf: leaf if keep_on_disk and is_on_disk(leaf) else _to_array(leaf, path),
        structure,
    )


def common_length(arrays: Any) -> int:
    """Return the size of the first dimension, which all arrays (or lists) must share.

    Raises:
        ConfigurationError: If there is no array, an empty array, or arrays differ in length.
    """
    shapes = {
        path: (len(array),) if isinstance(array, list) else tuple(array.shape)
        for path, array in leaves_with_paths(arrays)
    }
    shown = ", ".join(f"{shape}{at(path)}" for path, shape in shapes.items()) or "nothing"
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) != 1 or None in lengths:
        raise ConfigurationError(
            f"`source` holds arrays of shape {shown}; all need the same first dimension, the "
            "number of examples. (A list is one array: pass several inputs as a tuple or a dict.)"
        )
    (length,) = lengths
    if not length:
        raise ConfigurationError(f"`source` has no examples: its arrays have shape {shown}.")
    return int(length)


def at(path: str) -> str:
    """Return the words that locate a leaf in an error message; empty for the root."""
    return f" at {path}" if path else ""


def row_spec(array: Any) -> Any:
    """Return the `tf.TensorSpec` of one row of an array."""
    import tensorflow as tf

    return tf.TensorSpec(array.shape[1:], array.dtype)


class Rows:
    """A sequence of examples over nested arrays: item `i` is row `i` of each array."""

    def __init__(self, structure: Any) -> None:
        # Lists stay lists, so that `map` gets a file name as the user's own `str`.
        self._columns = _map_leaves(
            lambda path, leaf: leaf if isinstance(leaf, list) else to_arrays(leaf, True), structure
        )
        self._length = common_length(self._columns)

    @property
    def numeric_columns(self) -> list[tuple[str, Any]]:
        """The columns of numbers, with their paths.

        Strings may be the names of files, in a folder that has another name at the next start.
        """
        return [item for item in leaves_with_paths(self._columns) if _is_numeric(item[1])]

    @property
    def is_uniform(self) -> bool:
        """Whether all rows have the same shapes, which is unknown of lists."""
        return not any(isinstance(leaf, list) for _, leaf in leaves_with_paths(self._columns))

    @property
    def on_disk(self) -> bool:
        """Whether a column is an array on disk."""
        return any(is_on_disk(column) for _, column in leaves_with_paths(self._columns))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return _map_leaves(lambda path, column: column[index], self._columns)


def _map_leaves(function: Callable[[str, Any], Any], structure: Any, path: str = "") -> Any:
    if isinstance(structure, Mapping):
        return {key: _map_leaves(function, structure[key], f"{path}[{key!r}]") for key in structure}
    if isinstance(structure, tuple):
        parts = [_map_leaves(function, part, f"{path}[{i}]") for i, part in enumerate(structure)]
        return type(structure)(*parts) if hasattr(structure, "_fields") else tuple(parts)
    return function(path, structure)


def _loaded_tensorflow() -> Any | None:
    """Return TensorFlow; `None` if it is not imported, so that nothing can be of its types."""
    return sys.modules.get("tensorflow")


def _to_array(value: Any, path: str) -> Array:
    tf = _loaded_tensorflow()
    if tf is not None and isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        raise ConfigurationError(
            f"A {type(value).__name__}{at(path)} cannot be split into examples of one shape; use "
            "`.to_tensor()` or `tf.sparse.to_dense`."
        )
    try:
        array = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
        if array.dtype.kind in "SUO":
            return _to_bytes(np.array(value, object) if _is_python_value(value) else array)
        if array.dtype == np.float64 and _is_python_value(value):
            return array.astype(np.float32)
        if tf is not None:
            tf.as_dtype(array.dtype)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"A {type(value).__name__}{at(path)} cannot become a tensor: {error}"
        ) from error
    return array


def _is_numeric(column: Any) -> bool:
    if isinstance(column, list):
        return all(isinstance(item, int | float) for item in column)
    return np.dtype(column.dtype).kind in "biuf"


def _is_python_value(value: Any) -> bool:
    return isinstance(value, float | str | bytes | list) and not isinstance(value, np.generic)


def _to_bytes(array: Array) -> Array:
    def encode(item: Any) -> bytes:
        if isinstance(item, bytes):
            return item
        if isinstance(item, str):
            return item.encode()
        raise TypeError(f"it holds a {type(item).__name__}, not numbers or strings")

    flat = np.empty(array.size, object)
    flat[:] = [encode(item) for item in array.astype(object).ravel()]
    return flat.reshape(array.shape)
