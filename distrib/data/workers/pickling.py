"""Takes users' objects to worker processes, in one copy of their arrays for all workers.

Functions and classes of the script, also lambdas and those of a notebook, are pickled by value
(cloudpickle), because the workers do not import the script: it would start a training of its own.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import weakref
from collections.abc import Iterator, Mapping
from inspect import getclosurevars, isfunction, ismethod
from typing import Any

import cloudpickle
import numpy as np

from distrib.data.workers.messages import read_parts, table_of, write_parts
from distrib.errors import ConfigurationError

_MAX_DEPTH = 8


class Pickled:
    """Objects in a file without a name, which vanishes with the last process that has it open.

    Args:
        objects: The objects, by the name that the user gave them.

    Attributes:
        file: Descriptor of the file.
        table_size: Size of the table at its start, which `load` needs.

    Raises:
        ConfigurationError: If they cannot be pickled; names the part to blame.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        buffers: list[pickle.PickleBuffer] = []
        try:
            pickled = _dumps(objects, buffers)
        except Exception as error:
            raise ConfigurationError(_explain(objects, error)) from error
        contents = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
        table, size = table_of(contents)
        self.table_size = len(table)
        self.file = os.memfd_create("distrib-data")
        self._close = weakref.finalize(self, os.close, self.file)
        os.truncate(self.file, size)
        with mmap.mmap(self.file, size) as content, memoryview(content) as view:
            write_parts(view, table, contents)

    def close(self) -> None:
        """Close the file."""
        self._close()


def load(file: int, table_size: int) -> Any:
    """Return the objects in a file of `Pickled`.

    Their arrays share their memory with other processes until somebody writes to them.
    """
    content = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))
    pickled, *buffers = read_parts(content, table_size)
    return pickle.loads(pickled, buffers=buffers)


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Let a worker map the file of an `np.memmap` itself instead of reading it all here."""
        if isinstance(value, np.memmap) and value.mode is not None and value.filename is not None:
            root = value
            while isinstance(root.base, np.memmap):
                root = root.base
            shift = value.ctypes.data - root.ctypes.data
            if isinstance(root.base, mmap.mmap) and root.flags.c_contiguous and shift >= 0:
                where = os.fspath(value.filename), root.offset + shift
                return _map_file, (*where, value.dtype, value.shape, value.strides)
        return super().reducer_override(value)


def _map_file(path: str, offset: int, dtype: Any, shape: Any, strides: Any) -> Any:
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    file = np.memmap(path, np.uint8, "c", offset, (last + dtype.itemsize,))
    return np.ndarray(shape, dtype, file, strides=strides)


def _dumps(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    return file.getvalue()


def _explain(parts: Mapping[str, Any], error: Exception) -> str:
    path, error = _culprit(parts, error)
    return (
        f"`{path}` cannot be sent to worker processes: {type(error).__name__}: {error}. Make it at "
        "its first use in `map` or `__getitem__` (each process then has its own) and leave it out "
        "in `__getstate__`, or do without worker processes."
    )


def _culprit(parts: Mapping[str, Any], error: Exception) -> tuple[str, Exception]:
    """Return the path of the innermost part that cannot be pickled, and its error."""
    path, below = " or ".join(parts), list(parts.items())
    for _ in range(_MAX_DEPTH):
        for name, part in below:
            try:
                _dumps(part, [])
            except Exception as cause:
                path, error, below = name, cause, list(_parts_of(part, name))
                break
        else:
            break
    return path, error


def _parts_of(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isfunction(value):
        found = getclosurevars(value)
        for name, part in {**found.globals, **found.nonlocals}.items():
            yield f"{name} in {path}", part
    elif ismethod(value):
        yield f"{path}.__self__", value.__self__
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{path}[{key!r}]", part
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield f"{path}[{i}]", part
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, part in vars(value).items():
            yield f"{path}.{name}", part
