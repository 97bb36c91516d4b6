"""Where examples come from: arrays, one by one from Python, or a `tf.data` pipeline.

A source turns passes, which are pairs (epoch, first step), into batches. Two of the three can fetch
any example at any time, and start in the middle of an epoch at no cost. A `tf.data` pipeline cannot
be entered in the middle, so what came before is produced again and dropped.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from distrib.arrays import (
    Array,
    Rows,
    at,
    common_length,
    is_in_memory,
    is_stored,
    leaves,
    to_arrays,
)
from distrib.errors import ConfigurationError

if TYPE_CHECKING:
    from distrib.data import Order


# Bounds of what is gathered at once; the second one also bounds the memory that is held.
_BLOCK_BATCHES = 64
_BLOCK_BYTES = 1 << 20


class Source(Protocol):
    """Examples, as many as `num_examples`, of which each has the structure `element_spec`."""

    kind: str
    num_examples: int
    element_spec: Any

    def batches(self, passes: Any, order: Order) -> Any:
        """Return a `tf.data.Dataset` of batches.

        Args:
            passes: `tf.data.Dataset` of pairs of int64 scalars: an epoch, and its first step to be
                produced. One pass is done after the other.
            order: Which examples make up a batch.
        """
        ...


class ArraySource:
    """Arrays in memory, of which a batch is one gather, without Python."""

    kind = "arrays"

    def __init__(self, arrays: Any) -> None:
        arrays = to_arrays(arrays)
        self.num_examples = common_length(arrays)
        # A GPU machine would otherwise keep the data set in the memory of its first GPU.
        with tf.device("CPU:0"):
            self._tensors = tf.nest.map_structure(tf.convert_to_tensor, arrays)
        self.element_spec = tf.nest.map_structure(_row_spec, self._tensors)

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`.

        A small batch is gathered faster than TensorFlow calls a function for it, so full batches
        are gathered by the block and handed out one by one.
        """
        steps = self._batches_of_a_block(order)

        def gather(index: Any) -> Any:
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), self._tensors)

        def one_pass(epoch: Any, first: Any) -> Any:
            def block(step: Any) -> Any:
                index = order.block(epoch, step, tf.minimum(step + steps, order.full_batches))
                # All batches have the same shape to TensorFlow, whether there is a tail or not.
                shape = [None, order.static_batch_size]
                return gather(tf.compat.v1.placeholder_with_default(index, shape))

            blocks = tf.data.Dataset.range(first, order.full_batches, steps)
            full = blocks.map(block, tf.data.AUTOTUNE, deterministic=True).unbatch()
            last = tf.data.Dataset.range(
                tf.maximum(first, order.full_batches), order.num_batches
            ).map(lambda step: gather(order.indices(epoch, step)))
            return full if order.drop_remainder else full.concatenate(last)

        return passes.flat_map(one_pass)

    def _batches_of_a_block(self, order: Order) -> int:
        specs = tf.nest.flatten(self.element_spec)
        example = sum(max(spec.shape.num_elements(), 1) * spec.dtype.size for spec in specs)
        return max(1, min(_BLOCK_BATCHES, _BLOCK_BYTES // (example * order.batch_size)))


class _ReadSource:
    """What is read by Python code that is given indices; the base of the two that follow."""

    kind: str
    num_examples: int
    element_spec: Any

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
            # Not stateful: what is read depends on the arguments only, and TensorFlow would read
            # one batch after the other if determinism of operations is switched on.
            leaves = tf.numpy_function(
                read, [index, epoch], [s.dtype for s in specs], stateful=False
            )
            for leaf, spec in zip(leaves, specs, strict=True):
                leaf.set_shape([order.static_batch_size, *spec.shape])
            return tf.nest.pack_sequence_as(self.element_spec, leaves)

        # A call that waits for a disk holds its thread. On threads of their own they do not keep
        # the training step from running, and more of them than there are processors can wait.
        return _steps(passes, order).map(
            batch,
            num_parallel_calls=self._parallel_batches,
            deterministic=True,
            use_unbounded_threadpool=True,
        )

    @property
    def _parallel_batches(self) -> int:
        return self._parallel


class StoredArraySource(_ReadSource):
    """Arrays that stay on disk (`np.memmap`, HDF5, Zarr), read a batch at a time."""

    kind = "arrays"

    def __init__(self, arrays: Any, num_parallel_reads: int | None) -> None:
        super().__init__(num_parallel_reads)
        arrays = to_arrays(arrays, keep_stored=True)
        self.num_examples = common_length(arrays)
        self._arrays = tf.nest.flatten(arrays)
        # One row is read, since what an array on disk says of itself is not what NumPy makes of it.
        rows = self.read(np.array([0]), 0, 0)
        self.element_spec = tf.nest.pack_sequence_as(arrays, [_row_spec(row) for row in rows])

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the rows at `index` of every array."""
        rows = []
        for array in self._arrays:
            if isinstance(array, np.ndarray):
                rows.append(to_arrays(array[index]))
            else:
                # HDF5 takes indices in rising order only, each one once.
                unique, inverse = np.unique(index, return_inverse=True)
                rows.append(to_arrays(array[unique])[inverse])
        return rows


class ExampleSource(_ReadSource):
    """An object with `__len__` and `__getitem__` that returns one example, and a `map` for it."""

    kind = "examples"

    def __init__(
        self, examples: Any, map: Callable[..., Any] | None, num_parallel_reads: int | None
    ) -> None:
        super().__init__(num_parallel_reads)
        self._examples = examples
        self._map = map
        self._map_takes_rng = map is not None and _takes_rng(map)
        self.num_examples = len(examples)
        if self.num_examples == 0:
            raise ConfigurationError(f"`source` ({type(examples).__name__}) has no examples.")
        try:
            example = self._example(0, 0, 0)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"`source[0]`, or `map` of it, raised {type(error).__name__}: {error}"
            ) from error
        self.element_spec = tf.nest.map_structure(
            lambda array: tf.TensorSpec(array.shape, array.dtype), example
        )
        self._paths = [path for path, _ in leaves(example)]
        self._pool = ThreadPoolExecutor(self._parallel, "distrib-read")

    @property
    def _parallel_batches(self) -> int:
        # The examples of a batch are read side by side, so that the first batch of an epoch does
        # not take `batch_size` times as long as an example. A second batch keeps the readers busy
        # while the first is put together.
        return min(2, self._parallel)

    def read(self, index: Array, epoch: int, seed: int) -> list[Array]:
        """Return the examples at `index`, stacked."""

        def part(index: Array) -> list[list[Array]]:
            return [self._checked(int(i), epoch, seed) for i in index]

        if self._parallel == 1:
            examples = part(index)
        else:
            parts = np.array_split(index, min(self._parallel, len(index)))
            examples = [example for done in self._pool.map(part, parts) for example in done]
        return [np.stack(leaves) for leaves in zip(*examples, strict=True)]

    def _example(self, index: int, epoch: int, seed: int) -> Any:
        example = self._examples[index]
        if self._map_takes_rng:
            assert self._map is not None
            key = np.array([seed, epoch, index], np.uint64).view(np.uint32)
            example = self._map(example, rng=np.random.default_rng(key))
        elif self._map is not None:
            example = self._map(example)
        return to_arrays(example)

    def _checked(self, index: int, epoch: int, seed: int) -> list[Array]:
        """Return the leaves of an example, which must be as those of example 0.

        Raises:
            RuntimeError: With all there is to know in its text, since TensorFlow passes on the text
                only. A `StopIteration` must not get out: TensorFlow would take it for the end.
        """
        try:
            example = self._example(index, epoch, seed)
        except Exception as error:
            raise RuntimeError(
                f"Example {index} could not be read: {type(error).__name__}: {error}\n"
                f"{traceback.format_exc()}"
            ) from None
        found = list(leaves(example))
        if [path for path, _ in found] != self._paths:
            raise RuntimeError(
                f"Example {index} has the parts {[path for path, _ in found]}, but example 0 has "
                f"{self._paths}; return the same structure for all in `map`."
            )
        for (path, array), spec in zip(found, tf.nest.flatten(self.element_spec), strict=True):
            if array.shape != tuple(spec.shape):
                raise RuntimeError(
                    f"Example {index} has shape {array.shape}{at(path)}, but example 0 has "
                    f"{tuple(spec.shape)}; pad or crop to one shape in `map`."
                )
            if tf.as_dtype(array.dtype) != spec.dtype:
                raise RuntimeError(
                    f"Example {index} has dtype {array.dtype}{at(path)}, but example 0 has "
                    f"{spec.dtype.name}; convert to one dtype in `map`."
                )
        return [array for _, array in found]


class StreamSource:
    """A `tf.data.Dataset` of single examples."""

    kind = "stream"

    def __init__(self, dataset: Any, shuffle_buffer: int | None) -> None:
        self.num_examples = int(dataset.cardinality())
        if self.num_examples < 0:
            what = "without end" if self.num_examples == -1 else "of unknown length"
            raise ConfigurationError(
                f"`source` is a tf.data.Dataset {what}, but an epoch has a length; use "
                "`.take(n)`, or `.apply(tf.data.experimental.assert_cardinality(n))` where n is "
                "known."
            )
        if self.num_examples == 0:
            raise ConfigurationError("`source` is a tf.data.Dataset without examples.")
        self.element_spec = dataset.element_spec
        for spec in tf.nest.flatten(self.element_spec):
            if not isinstance(spec, tf.TensorSpec):
                raise ConfigurationError(
                    f"`source` has examples with a {type(spec).__name__}; only dense tensors can "
                    "be batched: use `.map` on it with `tf.sparse.to_dense` or `.to_tensor()`."
                )
        self.shuffle_buffer = shuffle_buffer or min(self.num_examples, 10_000)
        self._dataset = dataset

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`."""

        def one_pass(epoch: Any, first_step: Any) -> Any:
            dataset = self._dataset
            if order.shuffle:
                # The seed of `tf.random.set_seed` takes part as well, and a resumed run would have
                # another order if that had another value. It is set here for the graph that is
                # being built, and not to 0, which TensorFlow would compare with our tensor.
                tf.compat.v1.set_random_seed(1)
                (seed,) = tf.unstack(order.key(epoch, 1))
                dataset = dataset.shuffle(
                    self.shuffle_buffer, seed=seed, reshuffle_each_iteration=False
                )
            dataset = dataset.batch(order.batch_size, drop_remainder=order.drop_remainder)
            if order.padded_tail != order.tail and not order.drop_remainder:
                dataset = dataset.map(top_up)
            return dataset.skip(first_step)

        def top_up(*batch: Any) -> Any:
            size = tf.shape(tf.nest.flatten(batch)[0])[0]
            wanted = tf.where(tf.equal(size, order.tail), order.padded_tail, size)
            index = tf.range(wanted) % size
            # `tf.data` hands over the parts of a tuple one by one, anything else as it is.
            whole = batch if type(self.element_spec) is tuple else batch[0]
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), whole)

        return passes.flat_map(one_pass)


def _row_spec(array: Any) -> Any:
    return tf.TensorSpec(array.shape[1:], array.dtype)


def _steps(passes: Any, order: Order) -> Any:
    """Return a `tf.data.Dataset` of the (epoch, step) pairs of all passes."""
    return passes.flat_map(
        lambda epoch, first: tf.data.Dataset.range(first, order.num_batches).map(
            lambda step: (epoch, step)
        )
    )


def make_source(
    source: Any,
    map: Callable[..., Any] | None,
    num_parallel_reads: int | None,
    shuffle_buffer: int | None,
) -> ArraySource | StoredArraySource | ExampleSource | StreamSource:
    """Choose how to read `source`; the arguments are those of `distrib.data.make_dataset`.

    Raises:
        ConfigurationError: If nothing can read it, or an argument does not go with it.
    """
    if isinstance(source, tf.data.Dataset):
        if map is not None:
            raise ConfigurationError(
                "`map` is for examples that Python reads; `source` is a tf.data.Dataset: call "
                "`source.map(...)` instead."
            )
        _refuse("num_parallel_reads", num_parallel_reads, "a tf.data.Dataset reads by itself")
        return StreamSource(source, shuffle_buffer)
    why = "only a tf.data.Dataset needs one, this source is shuffled as a whole"
    _refuse("shuffle_buffer", shuffle_buffer, why)
    _refuse_batches(source)
    nested = isinstance(source, tuple | Mapping)
    if nested or is_in_memory(source) or is_stored(source):
        if map is not None:
            return ExampleSource(Rows(source), map, num_parallel_reads)
        if any(is_stored(leaf) for _, leaf in leaves(source)):
            return StoredArraySource(source, num_parallel_reads)
    # A list is an array, unless `map` is there to make examples of its items.
    if nested or is_in_memory(source) or (isinstance(source, list) and map is None):
        _refuse("num_parallel_reads", num_parallel_reads, "arrays in memory are not read")
        return ArraySource(source)
    indexable = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if indexable and not isinstance(source, str | bytes):
        return ExampleSource(source, map, num_parallel_reads)
    raise ConfigurationError(
        f"`source` is a {type(source).__name__}; give arrays (also nested in tuples and dicts), an "
        "object with `__len__` and `__getitem__` that returns one example, or a tf.data.Dataset of "
        "single examples."
    )


def _refuse(argument: str, value: Any, why: str) -> None:
    if value is not None:
        raise ConfigurationError(f"`{argument}={value}` has no use here: {why}; leave it out.")


def _refuse_batches(source: Any) -> None:
    if isinstance(source, keras.utils.PyDataset):
        raise ConfigurationError(
            f"`source` is a PyDataset ({type(source).__name__}), whose items are batches; give an "
            "object with `__len__` and `__getitem__` that returns one example."
        )


def _takes_rng(function: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except ValueError:  # Some built-in functions have no signature.
        return False
