"""Sources that Python reads: arrays on disk by the batch, random-access objects by the example.

TensorFlow calls back into Python for each batch, for several batches in parallel, on threads of its
own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import (
    Array,
    Rows,
    common_length,
    leaves_with_paths,
    row_spec,
    to_arrays,
)
from distrib.data.examples import Examples
from distrib.data.order import Order
from distrib.data.workers.example_pool import ExamplePool
from distrib.data.workers.pickling import Pickled


class _PythonSource:
    """Base of sources whose examples Python code reads by index."""

    kind: str
    num_examples: int
    element_spec: Any
    columns: list[tuple[str, Any]]

    def __init__(self, num_parallel_reads: int | None) -> None:
        self._parallel = num_parallel_reads or min(8, 2 * (os.cpu_count() or 1))

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the examples at `index`, stacked, one array for each leaf of `element_spec`."""
        raise NotImplementedError

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`."""
        specs = tf.nest.flatten(self.element_spec)

        def read(index: Array, epoch: Any) -> list[Array]:
            return self.read(index, int(epoch), order.seed)

        def batch(epoch: Any, step: Any) -> Any:
            index = order.indices(epoch, step)
            # Not stateful: the result depends on the arguments only. For a stateful function
            # TensorFlow would read sequentially under `enable_op_determinism`.
            leaves = tf.numpy_function(
                read, [index, epoch], [s.dtype for s in specs], stateful=False
            )
            for leaf, spec in zip(leaves, specs, strict=True):
                leaf.set_shape([order.static_batch_size, *spec.shape])
            return tf.nest.pack_sequence_as(self.element_spec, leaves)

        # A read blocks its thread. On threads of their own, reads neither delay the training step
        # nor are limited to the number of CPUs.
        return _steps(passes, order).map(
            batch,
            num_parallel_calls=self._parallel_batches,
            deterministic=True,
            use_unbounded_threadpool=True,
        )

    @property
    def _parallel_batches(self) -> int:
        return self._parallel


class DiskArraySource(_PythonSource):
    """Arrays on disk (`np.memmap`, HDF5, Zarr), read a batch at a time."""

    kind = "arrays"

    def __init__(self, arrays: Any, num_parallel_reads: int | None) -> None:
        super().__init__(num_parallel_reads)
        arrays = to_arrays(arrays, keep_on_disk=True)
        self.num_examples = common_length(arrays)
        self.columns = list(leaves_with_paths(arrays))
        self._arrays = [array for _, array in self.columns]
        # Reads one row: the dtype that an array on disk reports may differ from the one that NumPy
        # gives its rows.
        rows = self.read(np.array([0]), 0, 0)
        self.element_spec = tf.nest.pack_sequence_as(arrays, [row_spec(row) for row in rows])

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the rows at `index` of every array."""
        rows = []
        for array in self._arrays:
            if isinstance(array, np.ndarray):
                rows.append(to_arrays(array[index]))
            else:
                # HDF5 accepts only increasing indices, without repetition.
                unique, inverse = np.unique(index, return_inverse=True)
                rows.append(to_arrays(array[unique])[inverse])
        return rows


class RandomAccessSource(_PythonSource):
    """An object whose `__getitem__` returns one example, and the user's `map` over examples."""

    kind = "examples"

    def __init__(
        self,
        examples: Any,
        map: Callable[..., Any] | None,
        num_parallel_reads: int | None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(num_parallel_reads)
        # Before the first example is read, because sources may open files then.
        pickled = Pickled({"source": examples, "map": map}) if num_workers else None
        self._examples = Examples(examples, map)
        self.num_examples = len(self._examples)
        self.element_spec = self._examples.element_spec
        self.columns = examples.numeric_columns if isinstance(examples, Rows) else []
        self._pool = ThreadPoolExecutor(self._parallel, "distrib-read")
        self._workers: ExamplePool | None = None
        if pickled is not None:
            self._workers = ExamplePool(pickled, self._examples.leaves, num_workers)

    @property
    def _parallel_batches(self) -> int:
        # The examples of a batch are read in parallel, so that the first batch of an epoch does not
        # take `batch_size` times as long as an example. A second batch keeps the readers busy while
        # the first one is stacked.
        return min(2, self._parallel)

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the examples at `index`, stacked."""
        if self._workers is not None:
            return self._workers.read(index.tolist(), epoch, seed)

        def read_part(index: Array) -> list[list[Array]]:
            return [self._examples.read(int(i), epoch, seed) for i in index]

        if self._parallel == 1:
            examples = read_part(index)
        else:
            parts = np.array_split(index, min(self._parallel, len(index)))
            examples = [example for part in self._pool.map(read_part, parts) for example in part]
        return [np.stack(column) for column in zip(*examples, strict=True)]


def _steps(passes: Any, order: Order) -> Any:
    """Return a `tf.data.Dataset` of the (epoch, step) of each of this process's batches."""
    return passes.flat_map(
        lambda epoch, first: tf.data.Dataset.range(first, order.own_batches).map(
            lambda step: (epoch, step)
        )
    )
