"""The dataset of global batches, whose position is (seed, epoch, step) and nothing else.

Which examples make up a batch is a pure function of these three (`order.py`), so a pass can start
at any batch of any epoch, and there is no shuffle buffer to save. Every process of a job takes its
own shard of each global batch; all of them count the position in global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arguments import checked_integer
from distrib.data.arrays import Array
from distrib.data.batches import Batches
from distrib.data.contents import contents_of
from distrib.data.derived import mark
from distrib.data.methods import DatasetMethods
from distrib.data.position import DatasetPosition
from distrib.errors import ConfigurationError


class Dataset(DatasetMethods):
    """Global batches that can be resumed at any step; made by `cluster.dataset(...)`.

    A `tf.data.Dataset` to pass to `model.fit` as it is. Each pass over it is one epoch: the epoch
    passed to `seek`, or the one after the previous pass. In a job of several processes a pass
    yields this process's shard of each global batch. Under a `tf.distribute` strategy Keras splits
    the shard over the replicas.

    `map`, `prefetch`, `with_options`, `enumerate`, `cache` and `repeat` return a dataset with the
    same position. `take`, `skip`, `zip` and `concatenate` return one with a position of its own, at
    the first epoch. All other methods of `tf.data.Dataset` return ordinary datasets, which cannot
    be resumed.

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
        self, batches: Batches, position: DatasetPosition | None = None, endless: bool = False
    ) -> None:
        self.endless = endless
        self._batches = batches
        self._position = position or DatasetPosition()
        options = tf.data.Options()
        options.deterministic = True
        # TensorFlow's autotune thread can miss the end of the pass and sleep on for up to a minute.
        # The thread that deletes the iterator waits for it, and holds the GIL meanwhile.
        options.autotune.enabled = False
        self._inner = batches.over(_passes(self._position, endless).with_options(options))
        super().__init__(self._inner._variant_tensor)
        mark(self)

    def _inputs(self) -> list[Any]:
        # Also keeps the Python functions alive that the pipeline calls.
        return [self._inner]

    @property
    def element_spec(self) -> Any:
        """Structure of `tf.TensorSpec`s; the batch dimension is `None` unless `drop_remainder`."""
        return self._inner.element_spec

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
        return self._batches.share(checked_integer("step", step, 0, self.num_batches - 1))

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("The dataset is endless; `num_batches` is the length of an epoch.")
        return self._batches.own_batches

    def cardinality(self, name: str | None = None) -> Any:
        """Return the number of batches in a full pass, or `tf.data.INFINITE_CARDINALITY`.

        It is `num_batches`, or less for a process that has no examples of some batches; see
        `every_rank_has_examples`. Without this method the cardinality would be unknown, and Keras
        would expect all later epochs to be as short as a resumed one.
        """
        count = tf.data.INFINITE_CARDINALITY if self.endless else self._batches.own_batches
        return tf.constant(count, tf.int64, name=name)

    def check_order(self) -> None:
        """Check that all passes yield the same examples in the same order.

        Raises:
            ConfigurationError: If the dataset is shuffled or repeated, or its `map` is random.
        """
        if self._batches.vary or self.endless:
            raise ConfigurationError(
                "Each pass over this cluster.dataset differs: it is shuffled or repeated, or its "
                "`map` takes an `rng`. Pass one without."
            )

    def join(self, parts: Sequence[Array | None], steps: int | None = None) -> Array:
        """Put what the processes have of their examples in the order of the examples.

        Args:
            parts: By process, arrays of shape `(examples of the process, ...)`, in the order of a
                pass; `None` for a process without examples.
            steps: Number of batches that they are of. Defaults to `None`, for all of an epoch.

        Returns:
            An array of shape `(examples, ...)`.

        Raises:
            ConfigurationError: If an array has not one row for each example.
        """
        every = self.num_batches
        places = self._batches.places(every if steps is None else min(steps, every))
        found = [part for part in parts if part is not None]
        lengths = [0 if part is None else len(part) for part in parts]
        if lengths != [len(each) for each in places]:
            raise ConfigurationError(
                f"The processes have {lengths} rows for {[len(each) for each in places]} examples; "
                "each example needs one row."
            )
        whole = np.empty((sum(lengths), *found[0].shape[1:]), found[0].dtype)
        for place, part in zip(places, parts, strict=True):
            if part is not None:
                whole[place] = part
        return whole

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

    def _made_of(self, batches: Batches, endless: bool, same_position: bool) -> Dataset:
        return Dataset(batches, self._position if same_position else None, endless)

    @property
    def functions(self) -> dict[str, Any]:
        """The user's code that makes the batches, by the argument or method it was passed to."""
        return self._batches.functions

    def description(self) -> dict[str, Any]:
        """Return the `fingerprint` as far as it is known without reading the data."""
        return self._batches.describe()

    def fingerprint(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values.

        They do not include the numbers of processes and replicas, nor the functions passed to
        `map`. Of arrays and lists they include checksums (see `contents.py`), but not of other
        objects and of `tf.data` pipelines.
        """
        return {**self.description(), "contents": contents_of(self._batches.columns)}


# AutoGraph would search these functions for branches, which adds half a second to every start.
@tf.autograph.experimental.do_not_convert
def _passes(position: DatasetPosition, endless: bool) -> Any:
    return position.passes(endless)
