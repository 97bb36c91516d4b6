"""A `map` that is a `tf.function`, called inside of the pipeline instead of from Python.

Python only fetches the raw items of a batch. TensorFlow calls the function for several of them in
parallel, on threads of its own that never wait for Python's lock. Called from Python, with Python's
values, a `tf.function` would be traced anew for each record.

TensorFlow does not say which element of a pipeline an error comes from. If the function fails for
one example of a batch, Python reads the batch again, one example at a time, and names the example.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import Array, Rows, leaves_with_paths, to_arrays
from distrib.data.block_reader import BlockBatch
from distrib.data.examples import Examples, takes_rng
from distrib.data.order import Blocks, Order
from distrib.data.readers import RandomAccessSource, not_keeping
from distrib.errors import ConfigurationError

_PARALLEL_BATCHES = 2


def random_access_source(
    examples: Any,
    map: Callable[..., Any] | None,
    num_parallel_reads: int | None,
    num_workers: int,
) -> RandomAccessSource | GraphMapSource:
    """Choose how an object with random access is read: whether `map` is called inside a graph.

    Items of different shapes cannot be passed into a graph as one tensor. Records, names of files,
    labels and rows of arrays can.
    """
    if map is None or not is_graph_function(map):
        return RandomAccessSource(examples, map, num_parallel_reads, num_workers)
    if takes_rng(map):
        raise ConfigurationError(
            "`map` has a parameter `rng`, but is a tf.function, which would be traced for each "
            "example. Delete the decorator."
        )
    items = _RawItems(examples, num_parallel_reads)
    is_scalar = all(spec.shape.rank == 0 for spec in tf.nest.flatten(items.element_spec))
    if is_scalar or (isinstance(examples, Rows) and examples.is_uniform):
        return GraphMapSource(items, Examples(examples, _of_tensors(map)), map)
    return RandomAccessSource(examples, _of_tensors(map), num_parallel_reads)


def is_graph_function(function: Any) -> bool:
    """Tell whether this is a `tf.function`."""
    kinds = tf.types.experimental.GenericFunction, tf.types.experimental.ConcreteFunction
    return isinstance(function, kinds)


def _of_tensors(map: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the function for items as Python has them; given those, it would be traced anew."""

    def call(item: Any) -> Any:
        # On the CPU, as in a pipeline: a GPU rounds differently.
        with tf.device("CPU:0"):
            return map(tf.nest.map_structure(tf.convert_to_tensor, to_arrays(item)))

    return call


class GraphMapSource:
    """Raw items of an object with random access, and a `tf.function` from one to an example.

    Yields the same batches as `RandomAccessSource`.
    """

    kind = RandomAccessSource.kind

    def __init__(self, items: _RawItems, examples: Examples, map: Callable[..., Any]) -> None:
        self._items = items
        self._examples = examples
        self._map = map
        self.num_examples = items.num_examples
        self.element_spec = examples.element_spec
        self.columns = items.columns

    def blocks(self) -> Blocks | None:
        """Return the sizes for `shuffle="blocks"`; see `Source`."""
        return self._items.blocks()

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`."""
        size = order.static_batch_size
        fixed_size = size is not None

        def batch(index: Any, items: Any) -> Any:
            mapped = (
                tf.data.Dataset.from_tensor_slices(tuple(tf.nest.flatten(items)))
                .map(self._example, num_parallel_calls=os.cpu_count(), deterministic=True)
                .batch(size if fixed_size else tf.size(index, tf.int64), drop_remainder=fixed_size)
            )
            read_again = tf.data.Dataset.from_tensors(index).map(lambda i: self._read(i, size))
            return mapped.ignore_errors().concatenate(read_again).take(1)

        # Each item makes a pipeline of one batch. `map` with `get_single_element` would optimize
        # each of these pipelines anew.
        batches = self._items.batches(passes, order).interleave(
            batch,
            cycle_length=_PARALLEL_BATCHES,
            num_parallel_calls=_PARALLEL_BATCHES,
            deterministic=True,
        )
        batches.source = self  # See `not_keeping`.
        return batches

    def _example(self, *leaves: Any) -> Any:
        """Return the example of an item; its shapes must be those of example 0."""
        _, spec = self._items.element_spec
        example = self._map(tf.nest.pack_sequence_as(spec, leaves))
        parts = [tf.convert_to_tensor(part) for _, part in leaves_with_paths(example)]
        specs = tf.nest.flatten(self.element_spec)
        return tf.nest.pack_sequence_as(
            self.element_spec,
            [tf.ensure_shape(part, spec.shape) for part, spec in zip(parts, specs, strict=True)],
        )

    def _read(self, index: Any, size: int | None) -> Any:
        """Return the examples at `index` as Python reads them, which names one that fails."""
        specs = tf.nest.flatten(self.element_spec)
        read = not_keeping(self._read_again)
        leaves = tf.numpy_function(read, [index], [spec.dtype for spec in specs], stateful=False)
        for leaf, spec in zip(leaves, specs, strict=True):
            leaf.set_shape([size, *spec.shape])
        return tf.nest.pack_sequence_as(self.element_spec, leaves)

    def _read_again(self, index: Array) -> list[Array]:
        examples = [self._examples.read(int(i), 0, 0) for i in index]
        return [np.stack(column) for column in zip(*examples, strict=True)]


class _RawItems(RandomAccessSource):
    """Raw items, each with its index."""

    def __init__(self, examples: Any, num_parallel_reads: int | None) -> None:
        super().__init__(examples, None, num_parallel_reads)
        self.element_spec = tf.TensorSpec([], tf.int64), self.element_spec

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the indices, and the items at them, stacked."""
        return [index, *super().read(index, epoch, seed)]

    def read_blocks(self, batch: BlockBatch, seed: int) -> list[Array]:
        """Return the indices of a batch, and the items at them, stacked."""
        return [batch.index, *super().read_blocks(batch, seed)]
