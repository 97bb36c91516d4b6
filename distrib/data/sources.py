"""Where examples come from: arrays, an object that Python reads, or a `tf.data` pipeline.

A source turns passes, which are pairs (epoch, first step), into batches. Arrays and objects have
random access, so a pass starts in the middle of an epoch at no cost. A `tf.data` pipeline can only
be read from its start, so a resumed pass produces the earlier examples again and drops them. It
also drops the examples of other processes.
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
    is_on_disk,
    leaves_with_paths,
    row_spec,
    to_arrays,
)
from distrib.data.graph_map import random_access_source
from distrib.data.order import Blocks, Order
from distrib.data.pipelines.steps import steps_of
from distrib.data.readers import DiskArraySource
from distrib.data.workers.example_pool import check_workers
from distrib.errors import ConfigurationError

# Limits of a block of batches that is gathered at once; the second one also limits its memory.
_BLOCK_BATCHES = 64
_BLOCK_BYTES = 1 << 20


class Source(Protocol):
    """A fixed number of examples of one structure.

    Attributes:
        kind: Name of the kind of source in a dataset's fingerprint, which checkpoints hold.
        num_examples: Number of examples in an epoch.
        element_spec: Structure of `tf.TensorSpec`s of one example.
    """

    kind: str
    num_examples: int
    element_spec: Any

    @property
    def columns(self) -> list[tuple[str, Any]]:
        """Paths and arrays, by whose contents other data are told apart; empty without arrays."""

    def blocks(self) -> Blocks | None:
        """Return the sizes for `shuffle="blocks"`; `None` if examples are shuffled as ever."""

    def batches(self, passes: Any, order: Order) -> Any:
        """Return a `tf.data.Dataset` of batches.

        Args:
            passes: `tf.data.Dataset` of pairs of int64 scalars: an epoch, and its first step to
                produce. Passes are produced one after the other.
            order: Which examples make up a batch, and which of them belong to this process.
        """
        ...


class ArraySource:
    """Arrays in memory, batched by `tf.gather` without calling Python."""

    kind = "arrays"

    def __init__(self, arrays: Any) -> None:
        arrays = to_arrays(arrays)
        self.num_examples = common_length(arrays)
        # Otherwise TensorFlow would keep the arrays in the memory of the first GPU.
        with tf.device("CPU:0"):
            self._tensors = tf.nest.map_structure(tf.convert_to_tensor, arrays)
        self.element_spec = tf.nest.map_structure(row_spec, self._tensors)

    @property
    def columns(self) -> list[tuple[str, Any]]:
        """See `Source`."""
        return list(leaves_with_paths(self._tensors))

    def blocks(self) -> None:
        """Return `None`: in memory a shuffle of all examples costs no more."""

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`.

        Gathering a small batch takes less time than the call of a function in `tf.data`, so full
        batches are gathered in blocks and unbatched. `gather` is called outside of `flat_map`,
        because `tf.data` would set up a function inside of it anew for each pass.
        """
        steps = self._batches_per_block(order)

        def blocks(epoch: Any, first: Any) -> Any:
            full = tf.data.Dataset.range(first, min(order.full_batches, order.own_batches), steps)
            last = tf.data.Dataset.range(tf.maximum(first, order.full_batches), order.own_batches)
            starts = full.concatenate(last)
            return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(epoch).repeat(), starts))

        def gather(epoch: Any, start: Any) -> Any:
            index = order.indices_of_block(epoch, start, steps)
            # Gives all batches the same static shape, whether or not the last one is full.
            index = tf.compat.v1.placeholder_with_default(index, [None, order.static_batch_size])
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, index), self._tensors)

        gathered = passes.flat_map(blocks).map(gather, tf.data.AUTOTUNE, deterministic=True)
        return gathered.unbatch()

    def _batches_per_block(self, order: Order) -> int:
        specs = tf.nest.flatten(self.element_spec)
        example = sum(max(spec.shape.num_elements(), 1) * spec.dtype.size for spec in specs)
        batch = example * max(order.own_batch_size, 1)
        return max(1, min(_BLOCK_BATCHES, _BLOCK_BYTES // batch))


class StreamSource:
    """A `tf.data.Dataset` of single examples."""

    kind = "stream"
    columns: list[tuple[str, Any]] = []

    def __init__(self, dataset: Any, shuffle_buffer: int | None) -> None:
        self.num_examples = int(dataset.cardinality())
        if self.num_examples < 0:
            length = "without end" if self.num_examples == -1 else "of unknown length"
            raise ConfigurationError(
                f"`source` is a tf.data.Dataset {length}, but an epoch needs a known length; use "
                "`.take(n)`, or `.apply(tf.data.experimental.assert_cardinality(n))` if you know "
                "that it has n examples."
            )
        if _holds_batches(dataset):
            raise ConfigurationError(
                "`source` is a tf.data.Dataset of batches, but single examples are needed: leave "
                "`batch` out, or pass the dataset to `fit` as it is. If a batch is one example, "
                "such as a window of a text, pass `drop_remainder=True` to `batch`."
            )
        if self.num_examples == 0:
            raise ConfigurationError("`source` is a tf.data.Dataset without examples.")
        self.element_spec = dataset.element_spec
        for spec in tf.nest.flatten(self.element_spec):
            if not isinstance(spec, tf.TensorSpec):
                raise ConfigurationError(
                    f"`source` has examples with a {type(spec).__name__}; only dense tensors can "
                    "be batched: convert it with `tf.sparse.to_dense` or `.to_tensor()` in `.map`."
                )
        self.shuffle_buffer = shuffle_buffer or min(self.num_examples, 10_000)
        self._dataset = dataset

    def blocks(self) -> None:
        """Return `None`: a stream is read in its own order, whatever the shuffle."""

    def batches(self, passes: Any, order: Order) -> Any:
        """Return the batches; see `Source`."""

        def one_pass(epoch: Any, first_step: Any) -> Any:
            dataset = self._dataset
            if order.shuffle:
                # The order also depends on the global seed of `tf.random.set_seed`, which may
                # differ in a resumed run. So it is set to a constant for the graph being built, but
                # not to 0, for which TensorFlow would compare our tensor `seed` in Python.
                tf.compat.v1.set_random_seed(1)
                (seed,) = tf.unstack(order.epoch_key(epoch, 1))
                dataset = dataset.shuffle(
                    self.shuffle_buffer, seed=seed, reshuffle_each_iteration=False
                )
            dataset = dataset.batch(order.batch_size, drop_remainder=order.drop_remainder)
            if not takes_all_rows:
                dataset = dataset.enumerate().take(order.own_batches)
            return dataset.skip(first_step)

        def own_rows(step: Any, batch: Any) -> Any:
            rows = order.rows(step)
            rows = tf.compat.v1.placeholder_with_default(rows, [order.static_batch_size])
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), batch)

        is_padded = order.padded_last_batch_size != order.last_batch_size
        takes_all_rows = order.shard.size == 1 and not is_padded
        batches = passes.flat_map(one_pass)
        return batches if takes_all_rows else batches.map(own_rows)


def make_source(
    source: Any,
    map: Callable[..., Any] | None,
    num_parallel_reads: int | None,
    shuffle_buffer: int | None,
    num_workers: int = 0,
) -> Source:
    """Choose how to read `source`; the arguments are those of `make_dataset`, but for paths.

    Raises:
        ConfigurationError: If `source` cannot be read, or an argument does not apply to it.
    """
    if isinstance(source, tf.data.Dataset):
        if map is not None:
            raise ConfigurationError(
                "`map` is for examples that Python reads, but `source` is a tf.data.Dataset: call "
                "`source.map(...)` instead."
            )
        reason = "a tf.data.Dataset does its own reading"
        _refuse_argument("num_parallel_reads", num_parallel_reads, reason)
        _refuse_argument("num_workers", num_workers or None, reason)
        return StreamSource(source, shuffle_buffer)
    reason = "only a tf.data.Dataset needs a buffer; this source is shuffled as a whole"
    _refuse_argument("shuffle_buffer", shuffle_buffer, reason)
    _refuse_batches(source)
    if num_workers:
        check_workers(num_workers, source, map, num_parallel_reads)
    nested = isinstance(source, tuple | Mapping)
    if nested or is_in_memory(source) or is_on_disk(source):
        if map is not None:
            return random_access_source(Rows(source), map, num_parallel_reads, num_workers)
        reason = "without `map` no Python code runs for each example"
        _refuse_argument("num_workers", num_workers or None, reason)
        if any(is_on_disk(leaf) for _, leaf in leaves_with_paths(source)):
            return DiskArraySource(source, num_parallel_reads)
    # A list is one array, unless `map` turns its items into examples.
    if nested or is_in_memory(source) or (isinstance(source, list) and map is None):
        reason = "arrays in memory need no reading"
        _refuse_argument("num_parallel_reads", num_parallel_reads, reason)
        _refuse_argument("num_workers", num_workers or None, reason)
        return ArraySource(source)
    indexable = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if indexable and not isinstance(source, bytes):
        return random_access_source(source, map, num_parallel_reads, num_workers)
    raise ConfigurationError(
        f"`source` is a {type(source).__name__}; pass arrays (also nested in tuples and dicts), an "
        "object with `__len__` and a `__getitem__` that returns one example, a tf.data.Dataset "
        "of single examples, or a path, URL or pattern of files."
    )


def _refuse_argument(argument: str, value: Any, reason: str) -> None:
    if value is not None:
        raise ConfigurationError(f"`{argument}={value}` has no use here: {reason}; leave it out.")


def _refuse_batches(source: Any) -> None:
    if isinstance(source, keras.utils.PyDataset):
        raise ConfigurationError(
            f"`source` is a PyDataset ({type(source).__name__}), whose items are batches: "
            "pass it to `fit` as it is, which shares its batches between the ranks."
        )


def _holds_batches(dataset: Any) -> bool:
    """Whether a `batch` is the last step that forms the elements, and may leave a short one."""
    if not all(
        isinstance(spec, tf.TensorSpec) and spec.shape.rank and spec.shape[0] is None
        for spec in tf.nest.flatten(dataset.element_spec)
    ):
        return False
    passing = ("map", "cache", "prefetch", "options")
    kinds = [step.kind for step in steps_of(dataset) if step.kind not in passing]
    return kinds[-1] in ("batch", "padded_batch")
