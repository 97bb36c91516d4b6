"""Sources that Python reads: arrays on disk by the batch, random-access objects by the example.

TensorFlow calls back into Python for each batch, for several batches in parallel, on threads of its
own.
"""

from __future__ import annotations

import os
import weakref
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
from distrib.data.block_order import BlockOrder
from distrib.data.block_reader import BlockBatch, BlockPasses
from distrib.data.block_size import bytes_of, choose_blocks
from distrib.data.examples import Examples, of_part, unreadable
from distrib.data.files.source import FileSource
from distrib.data.order import Blocks, Order
from distrib.data.workers.example_pool import ExamplePool
from distrib.data.workers.pickling import Pickled

# Examples in a block of a source that does not say how it is read, and may hold more than it seems.
_UNKNOWN_BLOCK = 16
_PARALLEL_BLOCKS = 8


class _PythonSource:
    """Base of sources whose examples Python code reads by index."""

    kind: str
    num_examples: int
    element_spec: Any
    columns: list[tuple[str, Any]]

    def __init__(self, num_parallel_reads: int | None) -> None:
        self._parallel = num_parallel_reads or min(8, 2 * (os.cpu_count() or 1))
        # Fetching a block hardly needs a CPU.
        self._parallel_blocks = num_parallel_reads or _PARALLEL_BLOCKS

    def blocks(self) -> Blocks | None:
        """Return the sizes for `shuffle="blocks"`; see `Source`."""
        raise NotImplementedError

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the examples at `index`, stacked, one array for each leaf of `element_spec`."""
        raise NotImplementedError

    def fetch_block(self, start: int, stop: int) -> Any:
        """Return what the source holds of the examples `start` to `stop - 1`."""
        raise NotImplementedError

    def read_blocks(self, batch: BlockBatch, seed: int) -> list[Array]:
        """Return the examples of a batch as `read` does, from its blocks."""
        raise NotImplementedError

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`."""
        if order.blocks is not None:
            return self._batches_of_blocks(passes, order)

        own_read = not_keeping(self.read)

        def read(index: Array, epoch: Any) -> list[Array]:
            return own_read(index, int(epoch), order.seed)

        def batch(epoch: Any, step: Any) -> Any:
            return self._call(read, [order.indices(epoch, step), epoch], order)

        return self._in_parallel(_steps(passes, order), batch)

    def _batches_of_blocks(self, passes: Any, order: Order) -> Any:
        blocks = BlockPasses(
            BlockOrder(order), not_keeping(self.fetch_block), self._parallel_blocks
        )
        own_read = not_keeping(self.read_blocks)

        def read(number: Any) -> list[Array]:
            return own_read(blocks.take(int(number)), order.seed)

        def plan(epoch: Any, first: Any) -> Any:
            # Closes the Python generator when the pass is abandoned.
            return tf.data.Dataset.from_generator(
                blocks.plan, args=(epoch, first), output_signature=tf.TensorSpec([], tf.int64)
            )

        return self._in_parallel(
            passes.flat_map(plan), lambda number: self._call(read, [number], order)
        )

    def _call(self, read: Callable[..., list[Array]], arguments: list[Any], order: Order) -> Any:
        specs = tf.nest.flatten(self.element_spec)
        # Not stateful: the result depends on the arguments only. For a stateful function TensorFlow
        # would read sequentially under `enable_op_determinism`.
        leaves = tf.numpy_function(read, arguments, [s.dtype for s in specs], stateful=False)
        for leaf, spec in zip(leaves, specs, strict=True):
            leaf.set_shape([order.static_batch_size, *spec.shape])
        return tf.nest.pack_sequence_as(self.element_spec, leaves)

    def _in_parallel(self, dataset: Any, batch: Callable[..., Any]) -> Any:
        # A read blocks its thread. On threads of their own, reads neither delay the training step
        # nor are limited to the number of CPUs.
        batches = dataset.map(
            batch,
            num_parallel_calls=self._parallel_batches,
            deterministic=True,
            use_unbounded_threadpool=True,
        )
        batches.source = self  # Kept by all datasets and iterators that are made of this one.
        return batches

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

    def blocks(self) -> Blocks:
        """Return the sizes for `shuffle="blocks"`; see `Source`."""
        row_bytes = sum(bytes_of(row) for row in self.read(np.array([0]), 0, 0))
        return choose_blocks(self.num_examples, row_bytes)

    def fetch_block(self, start: int, stop: int) -> list[Array]:
        """Return rows of every array."""
        # A slice of a `np.memmap` is a view, which is read when it is copied.
        return [to_arrays(np.array(array[start:stop])) for array in self._arrays]

    def read_blocks(self, batch: BlockBatch, seed: int) -> list[Array]:
        """Return the rows of a batch of every array."""
        leaves = [
            np.empty((len(batch.index), *spec.shape), spec.dtype.as_numpy_dtype)
            for spec in tf.nest.flatten(self.element_spec)
        ]
        for block, rows, within in batch.rows():
            try:
                arrays = block.result()
            except Exception as error:
                raise unreadable(int(batch.index[rows[0]]), error) from None
            for leaf, array in zip(leaves, arrays, strict=True):
                leaf[rows] = array[within]
        return leaves


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
        self._source = examples
        self._examples = Examples(examples, map)
        self.num_examples = len(self._examples)
        self.element_spec = self._examples.element_spec
        self.columns = examples.numeric_columns if isinstance(examples, Rows) else []
        if isinstance(examples, FileSource):
            self.columns = [("files", examples)]
        self._pool = ThreadPoolExecutor(self._parallel, "distrib-read")
        self._workers: ExamplePool | None = None
        if pickled is not None:
            self._workers = ExamplePool(pickled, self._examples.leaves, num_workers)

    def blocks(self) -> Blocks | None:
        """Return the sizes for `shuffle="blocks"`; see `Source`."""
        if isinstance(self._source, Rows) and not self._source.on_disk:
            return None
        example_bytes = bytes_of(self._source[0])
        block_size = getattr(self._source, "block_size", None)
        return choose_blocks(self.num_examples, example_bytes, block_size, _UNKNOWN_BLOCK)

    @property
    def _parallel_batches(self) -> int:
        # The examples of a batch are read in parallel, so that the first batch of an epoch does not
        # take `batch_size` times as long as an example. A second batch keeps the readers busy while
        # the first one is stacked. Batches of one example need more of them for all workers.
        if self._workers is not None:
            return self._workers.num_workers + 1
        return min(2, self._parallel)

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the examples at `index`, stacked."""
        return self._stacked(index.tolist(), epoch, seed, None)

    def fetch_block(self, start: int, stop: int) -> list[Any]:
        """Return the raw items `start` to `stop - 1`; none if workers are to fetch them.

        Workers run `__getitem__`, because it may be as slow as `map`. Sources with `__getitems__`
        are read from files, for which this process has read-ahead.
        """
        if self._workers is not None and not self._examples.fetches_many:
            return []
        return self._examples.fetch(range(start, stop))

    def read_blocks(self, batch: BlockBatch, seed: int) -> list[Array]:
        """Return the examples of a batch, stacked."""
        raw: dict[int, Any] = {}
        for block, rows, within in batch.rows():
            # Examples of a block that could not be fetched are fetched one by one, so that an error
            # comes out at the example that has it.
            if block.exception() is None and (items := block.result()):
                for row, number in zip(rows.tolist(), within.tolist(), strict=True):
                    raw[row] = items[number]
        return self._stacked(batch.index.tolist(), batch.epoch, seed, raw)

    def _stacked(
        self, index: list[int], epoch: int, seed: int, raw: dict[int, Any] | None
    ) -> list[Array]:
        if self._workers is not None:
            return self._workers.read(index, epoch, seed, raw)

        def read_part(part: slice) -> list[list[Array]]:
            return self._examples.read_many(index[part], epoch, seed, of_part(raw, part))

        size = -(-len(index) // self._parallel)
        parts = [slice(start, start + size) for start in range(0, len(index), size)]
        apply = map if self._parallel == 1 else self._pool.map
        examples = [example for part in apply(read_part, parts) for example in part]
        return [np.stack(column) for column in zip(*examples, strict=True)]


def not_keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method without keeping its object alive.

    TensorFlow never deletes the Python functions of a pipeline (`_internal_py_func` in
    tensorflow/python/ops/script_ops.py). The data, and worker processes, would stay with them.
    """
    weak = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        method = weak()
        if method is None:
            raise RuntimeError("The dataset has been deleted.")
        return method(*arguments)

    return call


def _steps(passes: Any, order: Order) -> Any:
    """Return a `tf.data.Dataset` of the (epoch, step) of each of this process's batches."""
    return passes.flat_map(
        lambda epoch, first: tf.data.Dataset.range(first, order.own_batches).map(
            lambda step: (epoch, step)
        )
    )
