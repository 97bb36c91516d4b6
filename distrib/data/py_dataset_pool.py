"""Worker processes that build the batches of a `PyDataset`, for `use_multiprocessing=True`.

Keras forks them, which may hang beside TensorFlow's and Horovod's threads; these are programs of
their own (`workers/`), which load the `PyDataset` once. What its hooks change is sent as a file
without a name, which a worker loads with its first batch afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from distrib.data.workers.pickling import Pickled, load
from distrib.data.workers.pool import WorkerPool
from distrib.errors import ConfigurationError

_PY_DATASET, _CHANGES = "PyDataset", "what its hooks change"


class BatchPool:
    """Builds batches in worker processes.

    Args:
        py_dataset: The `PyDataset`.
        num_workers: Number of processes.

    Raises:
        ConfigurationError: If it cannot be pickled.
    """

    def __init__(self, py_dataset: Any, num_workers: int) -> None:
        try:
            pickled = Pickled({_PY_DATASET: py_dataset})
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{type(py_dataset).__name__} has `use_multiprocessing=True`, but {error}"
            ) from error
        self._pool = WorkerPool(pickled, _BuildBatch, num_workers, "batch")
        self._version = 0
        self._changes: Pickled | None = None

    def update(self, attributes: Mapping[str, Any]) -> None:
        """Give the workers other values of attributes; no batch is being built."""
        self._version += 1
        self._changes = Pickled({_CHANGES: dict(attributes)})

    def build(self, number: int) -> Any:
        """Return a batch as `__getitem__` returns it, with arrays for tensors.

        Raises:
            RuntimeError: With the traceback of the worker, or how it died.
        """
        changes = self._changes
        if changes is None:
            request = number, 0, "", 0
        else:
            path = f"/proc/{os.getpid()}/fd/{changes.file}"
            request = number, self._version, path, changes.table_size
        return self._pool.submit(request, _copied).result()


@contextmanager
def naming_batch(py_dataset: Any, number: int) -> Iterator[None]:
    """Add the number of a batch to an error of the block that builds it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was batch {number} of {type(py_dataset).__name__}.")
        raise


class _BuildBatch:
    """The task of the workers; see `workers.pool.Task`."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._py_dataset = objects[_PY_DATASET]
        self._version = 0

    def __call__(self, request: Any, started: Any) -> Any:
        number, version, path, table_size = request
        started(number)
        if version != self._version:
            file = os.open(path, os.O_RDONLY)
            try:
                changes = load(file, table_size)[_CHANGES]
            finally:
                os.close(file)
            for name, value in changes.items():
                object.__setattr__(self._py_dataset, name, value)
            self._version = version
        with naming_batch(self._py_dataset, number):
            return _mapped(_as_array, self._py_dataset[number])


def _as_array(leaf: Any) -> Any:
    is_tensor = hasattr(leaf, "__array__") and not isinstance(leaf, np.generic)
    return np.asarray(leaf) if is_tensor else leaf


def _copied(batch: Any) -> Any:
    return _mapped(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)


def _mapped(function: Any, batch: Any) -> Any:
    if isinstance(batch, tuple | list):
        return type(batch)(_mapped(function, part) for part in batch)
    if isinstance(batch, dict):
        return {key: _mapped(function, part) for key, part in batch.items()}
    return function(batch)
