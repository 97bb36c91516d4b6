"""The dataset of global batches, whose position is (seed, epoch, step) and nothing else.

Which examples make up a batch is a pure function of these three (`order.py`), so a pass can start
at any batch of any epoch, and there is no shuffle buffer to save. Every process of a job takes its
own shard of each global batch; all of them count the position in global batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from distrib.data.arguments import checked_integer
from distrib.data.arrays import leaves_with_paths
from distrib.data.contents import contents_of
from distrib.data.order import Order
from distrib.data.position import DatasetPosition
from distrib.data.resumable import ResumableDataset
from distrib.data.sources import Source
from distrib.errors import ConfigurationError


class Dataset(ResumableDataset):
    """Global batches that can be resumed at any step; made by `cluster.dataset(...)`.

    A `tf.data.Dataset` to pass to `model.fit` as it is. Each pass over it is one epoch: the epoch
    passed to `seek`, or the one after the previous pass. In a job of several processes a pass
    yields this process's shard of each global batch. Under a `tf.distribute` strategy Keras splits
    the shard over the replicas. `map` and `prefetch` return a dataset with the same position; all
    other methods of `tf.data.Dataset` return ordinary datasets.

    Attributes:
        num_batches: Number of global batches in a full epoch, also if the next pass starts in the
            middle of one, and for an endless dataset.
        endless: Whether a pass continues with the next epoch instead of ending; see `repeat`.

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
        position: DatasetPosition,
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
        # TensorFlow's autotune thread can miss the end of the pass and sleep on for up to a minute.
        # The thread that deletes the iterator waits for it, and holds the GIL meanwhile.
        options.autotune.enabled = False
        batches = _batches(source, order, position, endless)
        batches = batches.with_options(options).prefetch(tf.data.AUTOTUNE)
        self._inner = functools.reduce(lambda ds, step: step(ds), transformations, batches)
        super().__init__(self._inner._variant_tensor)

    def _inputs(self) -> list[Any]:
        # Also keeps the Python functions alive that the pipeline calls.
        return [self._inner]

    @property
    def element_spec(self) -> Any:
        """Structure of `tf.TensorSpec`s; the batch dimension is `None` unless `drop_remainder`."""
        return self._inner.element_spec

    @property
    def num_batches(self) -> int:
        """Number of global batches in a full epoch."""
        return self._order.num_batches

    @property
    def every_rank_has_examples(self) -> bool:
        """Whether every rank has examples of every batch; the same value on all ranks.

        If not, which takes `shuffle=False`, the last ranks run fewer steps than the others. That
        suits an evaluation, but not training, where all ranks must step together.
        """
        return self._order.padded_last_batch_size >= self._order.shard.size

    def share(self, step: int) -> float:
        """Return this process's share of a batch: the weight of its mean in the global mean.

        The mean over the examples of a global batch is the mean over the ranks of `share` times the
        rank's own mean. 1 is an equal share.

        Args:
            step: Step of an epoch, 0 to `num_batches - 1`.

        Returns:
            The number of this process's examples in the batch, times the number of processes,
            divided by the number of all examples in the batch; 0 if this process has none. The
            shares of all processes add up to the number of processes.

        Raises:
            ConfigurationError: If an epoch has no such step.
        """
        return self._order.share(checked_integer("step", step, 0, self.num_batches - 1))

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("The dataset is endless; `num_batches` is the length of an epoch.")
        return self._order.own_batches

    def cardinality(self, name: str | None = None) -> Any:
        """Return the number of batches in a full pass, or `tf.data.INFINITE_CARDINALITY`.

        It is `num_batches`, or less for a process that has no examples of some batches; see
        `every_rank_has_examples`. Without this method the cardinality would be unknown, and Keras
        would expect all later epochs to be as short as a resumed one.
        """
        count = tf.data.INFINITE_CARDINALITY if self.endless else self._order.own_batches
        return tf.constant(count, tf.int64, name=name)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass start at a step of an epoch.

        The next pass yields the batches `step` to `num_batches - 1` of the epoch and ends (if
        endless, continues with the next epoch); the pass after it is the next epoch, in full.
        Passes that have begun are not affected.

        Args:
            epoch: Epoch number, 0 or more.
            step: First step, 0 to `num_batches`; the latter leaves no batch of this epoch.

        Raises:
            ConfigurationError: If there is no such position.
        """
        epoch = checked_integer("epoch", epoch, 0)
        step = checked_integer("step", step, 0)
        if step > self.num_batches:
            raise ConfigurationError(
                f"`step={step}` is beyond the end: an epoch of this dataset has "
                f"{self.num_batches} batches."
            )
        self._position.seek(epoch, step)

    def repeat(self, count: int | None = None, name: str | None = None) -> Dataset:
        """Return an endless dataset, for `fit(steps_per_epoch=...)`.

        Counted from the start of the pass, batch `i` is step `i % num_batches` of epoch
        `i // num_batches`. Both datasets share one position.

        Args:
            count: Only `None` or -1, for endless repetition. Defaults to `None`.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If `count` is a number of repetitions, or a process has no examples
                of some batches, so that it would run ahead of the others.
        """
        if count not in (None, -1):
            raise ConfigurationError(
                f"`repeat({count})` would hide the epochs from Keras; pass the dataset to `fit` as "
                f"it is, with `epochs={count}`, or call `repeat()` and pass `steps_per_epoch`."
            )
        if not self.every_rank_has_examples:
            raise ConfigurationError(
                f"The last batch has {self._order.last_batch_size} examples for "
                f"{self._order.shard.size} processes, so with `repeat()` those without an example "
                "would run ahead of the others; use `shuffle=True`, `drop_remainder=True` or "
                "another `batch_size`."
            )
        return Dataset(self._source, self._order, self._position, self._transformations, True)

    def shard(self, num_shards: Any, index: Any, name: str | None = None) -> Any:
        """Refuse a second split, as scripts written for Horovod make it.

        Raises:
            ConfigurationError: In a job of several processes.
        """
        if self._order.shard.size > 1:
            raise ConfigurationError(
                "`shard` would leave most examples out: each rank gets its shard of every global "
                "batch of a cluster.dataset already. Delete it."
            )
        return super().shard(num_shards, index, name)

    def map(self, map_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Dataset:
        """Apply a function to every batch, as `tf.data.Dataset.map`; `seek` keeps working."""
        return self._transform(lambda ds: ds.map(map_func, *args, **kwargs))

    def prefetch(self, buffer_size: int, name: str | None = None) -> Dataset:
        """Prepare batches ahead of time, as `tf.data.Dataset.prefetch`; `seek` keeps working."""
        return self._transform(lambda ds: ds.prefetch(buffer_size, name=name))

    def _transform(self, transformation: Callable[[Any], Any]) -> Dataset:
        transformations = (*self._transformations, transformation)
        return Dataset(self._source, self._order, self._position, transformations, self.endless)

    def fingerprint(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values.

        They do not include the numbers of processes and replicas, nor the functions passed to
        `map`. Of arrays and lists they include checksums (see `contents.py`), but not of other
        objects and of `tf.data` pipelines.
        """
        blocks = self._order.blocks
        sizes = {} if blocks is None else {"blocks": [blocks.size, blocks.window]}
        return {
            "source": self._source.kind,
            "num_examples": self._source.num_examples,
            "structure": [
                {"path": path, "shape": _shape(spec), "dtype": spec.dtype.name}
                for path, spec in leaves_with_paths(self._source.element_spec)
            ],
            "batch_size": self._order.batch_size,
            "shuffle": self._order.shuffle,
            **sizes,
            "seed": self._order.seed,
            "drop_remainder": self._order.drop_remainder,
            "shuffle_buffer": getattr(self._source, "shuffle_buffer", None),
            "contents": contents_of(self._source.columns),
        }


def _shape(spec: Any) -> list[int | None] | None:
    return None if spec.shape.rank is None else spec.shape.as_list()


# None of this package's pipeline functions branches on a tensor in Python. AutoGraph would search
# them for branches all the same, which adds half a second to every start.
@tf.autograph.experimental.do_not_convert
def _batches(source: Source, order: Order, position: DatasetPosition, endless: bool) -> Any:
    return source.batches(position.passes(endless), order)
