"""Where examples come from: arrays, one by one from Python, or a `tf.data` pipeline.

A source turns passes, which are pairs (epoch, first step), into batches. Two of the three can fetch
any example at any time, and start in the middle of an epoch at no cost. A `tf.data` pipeline cannot
be entered in the middle, so what came before is produced again and dropped, as are the examples of
other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import tensorflow as tf

from distrib.data.arrays import (
    Rows,
    common_length,
    is_in_memory,
    is_stored,
    leaves,
    row_spec,
    to_arrays,
)
from distrib.data.order import Order
from distrib.data.readers import ExampleSource, StoredArraySource
from distrib.errors import ConfigurationError

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
            order: Which examples make up a batch, and which of them are this process's.
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
        self.element_spec = tf.nest.map_structure(row_spec, self._tensors)

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`.

        A small batch is gathered faster than TensorFlow calls a function for it, so full batches
        are gathered by the block and handed out one by one. All calls go to one function outside
        of `flat_map`, because a function within it is prepared anew for each pass.
        """
        steps = self._batches_of_a_block(order)

        def blocks(epoch: Any, first: Any) -> Any:
            full = tf.data.Dataset.range(first, min(order.full_batches, order.own_batches), steps)
            last = tf.data.Dataset.range(tf.maximum(first, order.full_batches), order.own_batches)
            starts = full.concatenate(last)
            return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(epoch).repeat(), starts))

        def gather(epoch: Any, start: Any) -> Any:
            index = order.block(epoch, start, steps)
            # All batches have the same shape to TensorFlow, whether there is a tail or not.
            index = tf.compat.v1.placeholder_with_default(index, [None, order.static_batch_size])
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), self._tensors)

        gathered = passes.flat_map(blocks).map(gather, tf.data.AUTOTUNE, deterministic=True)
        return gathered.unbatch()

    def _batches_of_a_block(self, order: Order) -> int:
        specs = tf.nest.flatten(self.element_spec)
        example = sum(max(spec.shape.num_elements(), 1) * spec.dtype.size for spec in specs)
        batch = example * max(order.own_batch_size, 1)
        return max(1, min(_BLOCK_BATCHES, _BLOCK_BYTES // batch))


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
            if not whole:
                dataset = dataset.enumerate().take(order.own_batches)
            return dataset.skip(first_step)

        def own_rows(step: Any, batch: Any) -> Any:
            rows = order.rows(step)
            rows = tf.compat.v1.placeholder_with_default(rows, [order.static_batch_size])
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), batch)

        whole = order.shard.size == 1 and order.padded_tail == order.tail
        batches = passes.flat_map(one_pass)
        return batches if whole else batches.map(own_rows)


def make_source(
    source: Any,
    map: Callable[..., Any] | None,
    num_parallel_reads: int | None,
    shuffle_buffer: int | None,
) -> ArraySource | StoredArraySource | ExampleSource | StreamSource:
    """Choose how to read `source`; the arguments are those of `distrib.data.dataset.make_dataset`.

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
