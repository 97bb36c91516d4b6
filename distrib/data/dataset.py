"""The dataset of global batches, whose position is (seed, epoch, step) and nothing else.

Which examples make up a batch is a pure function of these three (`order.py`), so a pass can start
at any batch of any epoch, and there is no shuffle buffer to save. In a job of several processes
each takes its own slice of every global batch; all of them count the position in global batches.

The position is read when a pass hands out its first batch, not when its iterator is made, because
Keras makes iterators that it never draws from. It is kept in Python: a `tf.Variable` made inside
`strategy.scope()` would be mirrored to the devices, which an input pipeline cannot read.
"""

from __future__ import annotations

import functools
import numbers
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import leaves
from distrib.data.order import Order, Shard, leaves_a_replica_empty
from distrib.data.sources import Source, make_source
from distrib.errors import ConfigurationError


class Dataset(tf.data.Dataset):
    """Global batches, in an order that can be entered anywhere; made by `cluster.dataset(...)`.

    A `tf.data.Dataset`, to be given to `model.fit` as it is. Each pass over it is one epoch: the
    epoch sought last, or the one after the pass before. In a job of several processes a pass
    gives this process's slice of each batch. Under a `tf.distribute` strategy Keras splits what it
    gets over the replicas. `map` and `prefetch` return a dataset with the same position; all other
    methods of `tf.data.Dataset` return ordinary datasets.

    Attributes:
        num_batches: Global batches of a full epoch, also when the next pass starts in the middle of
            one, and for an endless dataset.
        endless: Whether a pass goes on with the next epoch instead of ending; see `repeat`.

    Example:
    >>> ds = make_dataset(np.arange(6), batch_size=2, shuffle=True, seed=1)
    >>> first = [batch.numpy() for batch in ds]
    >>> ds.seek(epoch=0, step=2)
    >>> [batch.numpy() for batch in ds] == first[2:]
    True
    >>> len(ds)
    3
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        position: _Position,
        transformations: tuple[Callable[[Any], Any], ...] = (),
        endless: bool = False,
    ) -> None:
        self.endless = endless
        self._source = source
        self._order = order
        self._position = position
        self._transformations = transformations
        options = tf.data.Options()
        options.deterministic = True
        # TensorFlow's tuning thread can miss that the pass has ended and sleep on, up to a minute,
        # while whoever lets go of the iterator waits for it and holds Python's lock.
        options.autotune.enabled = False
        inner = _batches(source, order, position, endless)
        inner = inner.with_options(options).prefetch(tf.data.AUTOTUNE)
        self._inner = functools.reduce(lambda ds, change: change(ds), transformations, inner)
        super().__init__(self._inner._variant_tensor)

    def _inputs(self) -> list[Any]:
        # This also keeps the Python functions alive that the pipeline calls.
        return [self._inner]

    @property
    def element_spec(self) -> Any:
        """Structure of `tf.TensorSpec`s; the batch dimension is None unless `drop_remainder`."""
        return self._inner.element_spec

    @property
    def num_batches(self) -> int:
        """Global batches of a full epoch."""
        return self._order.num_batches

    @property
    def every_rank_has_examples(self) -> bool:
        """Whether each process of the job has examples of every batch; the same on all of them.

        Where not, which takes `shuffle=False`, the last ranks make fewer steps than the others.
        That suits an evaluation, but not training, where all ranks must step together.
        """
        return self._order.padded_tail >= self._order.shard.size

    def share(self, step: int) -> float:
        """Return how much of a batch this process has, by its number of examples.

        1 is an equal share. The mean of a quantity over the examples of a global batch is the mean
        over all ranks of `share` times the mean over the rank's examples.

        Args:
            step: Of an epoch, 0 to `num_batches - 1`.

        Returns:
            This process's examples of the batch times the number of processes, divided by all
            examples of the batch; 0 where it has none. It adds up to the number of processes.

        Raises:
            ConfigurationError: If there is no such step.
        """
        return self._order.share(_integer("step", step, 0, self.num_batches - 1))

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("The dataset is endless; `num_batches` is the length of an epoch.")
        return self._order.own_batches

    def cardinality(self, name: str | None = None) -> Any:
        """Return the number of batches of a full pass, or `tf.data.INFINITE_CARDINALITY`.

        TensorFlow would find the number unknown, and Keras would then take the length of a resumed
        epoch for that of all epochs to come. It is `num_batches`, or fewer for a process that has
        no examples of some; see `every_rank_has_examples`.
        """
        count = tf.data.INFINITE_CARDINALITY if self.endless else self._order.own_batches
        return tf.constant(count, tf.int64, name=name)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass start at a batch.

        The next pass gives the batches `step` to `num_batches - 1` of the epoch and ends (or goes
        on with the next epoch, if endless); the pass after it is the next epoch, in full. Passes
        that have begun are not affected.

        Args:
            epoch: 0 or more.
            step: 0 to `num_batches`; the last leaves nothing of this epoch.

        Raises:
            ConfigurationError: If there is no such position.
        """
        epoch = _integer("epoch", epoch, 0)
        step = _integer("step", step, 0)
        if step > self.num_batches:
            raise ConfigurationError(
                f"`step={step}` is beyond the end: an epoch of this dataset has "
                f"{self.num_batches} batches."
            )
        self._position.seek(epoch, step)

    def repeat(self, count: int | None = None, name: str | None = None) -> Dataset:
        """Return the dataset without end, for `fit(steps_per_epoch=...)`.

        Counted from the start of the pass, batch `i` is step `i % num_batches` of epoch
        `i // num_batches`. The position is shared with this dataset.

        Raises:
            ConfigurationError: If `count` is given, or a process has no examples of some batches:
                it would run ahead of the others.
        """
        if count not in (None, -1):
            raise ConfigurationError(
                f"`repeat({count})` would hide the epochs from Keras; give the dataset to `fit` as "
                f"it is, with `epochs={count}`, or call `repeat()` and give `steps_per_epoch`."
            )
        if not self.every_rank_has_examples:
            raise ConfigurationError(
                f"`repeat()` of a dataset whose last batch has {self._order.tail} examples for "
                f"{self._order.shard.size} processes would let those without run ahead of the "
                "others; use `shuffle=True`, `drop_remainder=True` or another `batch_size`."
            )
        return Dataset(self._source, self._order, self._position, self._transformations, True)

    def map(self, map_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Dataset:
        """Apply a function to every batch, as `tf.data.Dataset.map`; `seek` keeps working."""
        return self._then(lambda ds: ds.map(map_func, *args, **kwargs))

    def prefetch(self, buffer_size: int, name: str | None = None) -> Dataset:
        """Prepare batches ahead of time, as `tf.data.Dataset.prefetch`; `seek` keeps working."""
        return self._then(lambda ds: ds.prefetch(buffer_size, name=name))

    def _then(self, change: Callable[[Any], Any]) -> Dataset:
        changes = (*self._transformations, change)
        return Dataset(self._source, self._order, self._position, changes, self.endless)

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for a position to mean the same batches.

        JSON-able. The numbers of processes and replicas are not part of it, nor are functions given
        to `map`.
        """
        return {
            "source": self._source.kind,
            "num_examples": self._source.num_examples,
            "structure": [
                {"path": path, "shape": _shape(spec), "dtype": spec.dtype.name}
                for path, spec in leaves(self._source.element_spec)
            ],
            "batch_size": self._order.batch_size,
            "shuffle": self._order.shuffle,
            "seed": self._order.seed,
            "drop_remainder": self._order.drop_remainder,
            "shuffle_buffer": getattr(self._source, "shuffle_buffer", None),
        }


def _shape(spec: Any) -> list[int | None] | None:
    return None if spec.shape.rank is None else spec.shape.as_list()


# No function of ours that makes up a pipeline branches on a tensor in Python. Looking for that, as
# AutoGraph would within this call, would take half a second of every start.
@tf.autograph.experimental.do_not_convert
def _batches(source: Source, order: Order, position: _Position, endless: bool) -> Any:
    return source.batches(position.passes(endless), order)


class _Position:
    """Where the next pass starts; shared by all datasets derived from one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self._step = 0

    def seek(self, epoch: int, step: int) -> None:
        with self._lock:
            self._epoch, self._step = epoch, step

    def take(self) -> tuple[np.int64, np.int64]:
        with self._lock:
            taken = np.int64(self._epoch), np.int64(self._step)
            self._epoch, self._step = self._epoch + 1, 0
        return taken

    def passes(self, endless: bool) -> Any:
        """Return a `tf.data.Dataset` of the (epoch, first step) of each pass."""

        def take(_: Any) -> tuple[Any, Any]:
            epoch, step = tf.numpy_function(self.take, [], [tf.int64, tf.int64])
            return tf.ensure_shape(epoch, []), tf.ensure_shape(step, [])

        def epochs(epoch: Any, step: Any) -> Any:
            # Counted here, not taken one by one: what runs ahead of the training must not move
            # the position of the pass to come.
            return tf.data.Dataset.counter().map(
                lambda i: (epoch + i, tf.where(tf.equal(i, 0), step, tf.zeros_like(step)))
            )

        first = tf.data.Dataset.from_tensors(0).map(take)
        return first.flat_map(epochs) if endless else first


def make_dataset(
    source: Any,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    *,
    map: Callable[..., Any] | None = None,
    drop_remainder: bool = False,
    num_parallel_reads: int | None = None,
    shuffle_buffer: int | None = None,
    num_replicas: int | None = None,
    rank: int = 0,
    size: int = 1,
) -> Dataset:
    """Return a dataset of global batches that can be resumed at any step.

    Args:
        source: The examples, as one of

            - arrays in memory: NumPy arrays, tensors, pandas objects, lists of numbers, alone or
              nested in tuples and dicts, such as `(x, y)`, `(x, y, sample_weight)` and
              `({"image": x1, "text": x2}, y)`, all with the same first dimension;
            - the same with arrays that stay on disk: `np.memmap`, HDF5 and Zarr;
            - an object with `__len__` and `__getitem__` whose items are single examples;
            - a `tf.data.Dataset` of single examples with a known number of them, the same ones in
              the same order each time.
        batch_size: Examples of a batch, over all replicas.
        shuffle: Whether each epoch has an order of its own, made of `seed` and its number. Say
            `True` for what a model is trained on, see Notes.
        seed: Of the order and of the `rng` that `map` gets, 0 to 2**63 - 1.
        map: Python function from an example as the source has it to the example the model gets.
            If it has a parameter `rng`, it gets a `np.random.Generator` there that depends on
            (seed, epoch, index of the example) only, so that augmentation is the same after a
            resume. Runs in several threads at once. Not for a `tf.data.Dataset`.
        drop_remainder: Whether to leave out a last batch that is not full.
        num_parallel_reads: How many examples (or batches, of arrays on disk) are read at once, by
            default twice the processors and at most 8. Only for what Python reads.
        shuffle_buffer: Only for a `tf.data.Dataset`: how many examples to shuffle among, by
            default all, and at most 10,000.
        num_replicas: Copies of the model that share a batch, over all processes; by default one a
            process.
        rank: This process's number in the job, 0 to `size - 1`.
        size: Number of processes that share a batch. Each is to make the same dataset, with its own
            `rank`; which examples make up a global batch depends on neither.

    Returns:
        A `Dataset`. Batches have the structure of an example; each tensor has the shape of an
        example's behind a first dimension for the batch. Arrays keep their dtype; Python's ints
        become int64, its floats float32, its strings `tf.string`.

    Raises:
        ConfigurationError: If an argument does not fit. What is found out while reading (an
            example that cannot be read, or has another shape than example 0) is a
            `tf.errors.OpError` whose text names the example.

    Notes:
        A batch too small to give each replica an example makes batch normalization produce NaN.
        With `shuffle=True` such a last batch is topped up to a multiple of `num_replicas` with its
        own first examples. With `shuffle=False` it is left alone, so that metrics are exact, and a
        process that has none of its examples skips it.

    Example:

    ```python
    train = make_dataset((x, y), batch_size=128, shuffle=True, seed=7)
    model.fit(train, validation_data=make_dataset((val_x, val_y), batch_size=256), epochs=10)
    ```
    """
    batch_size = _integer("batch_size", batch_size, 1)
    seed = _integer("seed", seed, 0, 2**63 - 1)
    size = _integer("size", size, 1)
    rank = _integer("rank", rank, 0, size - 1)
    num_replicas = size if num_replicas is None else _integer("num_replicas", num_replicas, 1)
    if num_replicas % size:
        raise ConfigurationError(
            f"`num_replicas={num_replicas}` are not the same number in each of `size={size}` "
            f"processes; give the number of all replicas, a multiple of {size}."
        )
    if num_parallel_reads is not None:
        num_parallel_reads = _integer("num_parallel_reads", num_parallel_reads, 1)
    if shuffle_buffer is not None:
        shuffle_buffer = _integer("shuffle_buffer", shuffle_buffer, 1)
    if shuffle and leaves_a_replica_empty(batch_size, num_replicas, size):
        raise ConfigurationError(
            f"`batch_size={batch_size}` does not give each of {num_replicas} replicas in {size} "
            f"{'process' if size == 1 else 'processes'} examples; choose a multiple of "
            f"{num_replicas}."
        )
    if isinstance(source, Dataset):
        raise ConfigurationError("`source` is a dataset of batches already; use it as it is.")
    reader = make_source(source, map, num_parallel_reads, shuffle_buffer)
    order = Order(
        num_examples=reader.num_examples,
        batch_size=batch_size,
        shuffle=bool(shuffle),
        seed=seed,
        drop_remainder=bool(drop_remainder),
        num_replicas=num_replicas,
        shard=Shard(rank, size),
    )
    if order.num_batches == 0:
        raise ConfigurationError(
            f"`batch_size={batch_size}` with `drop_remainder=True` leaves no batch of "
            f"{reader.num_examples} examples; choose a smaller batch."
        )
    return Dataset(reader, order, _Position())


def _integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):
        bound = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise ConfigurationError(f"`{name}={value!r}` must be a whole number, {bound}.")
    return int(value)
