"""The methods of `tf.data.Dataset` that a `cluster.dataset` has in a form of its own.

Most of them keep the position: the result can be resumed at any step. The others would repeat or
leave out examples in silence, and are refused. Methods that are not here return ordinary datasets,
which cannot be resumed; `derived.py` recognizes these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from distrib.data.batches import Batches
from distrib.data.made_batches import (
    CachedBatches,
    ConcatenatedBatches,
    EnumeratedBatches,
    SlicedBatches,
    TransformedBatches,
    ZippedBatches,
)
from distrib.data.resumable import ResumableDataset
from distrib.errors import ConfigurationError

_autograph = tf.__internal__.autograph


class DatasetMethods(ResumableDataset):
    """Base of `Dataset`; see there for the attributes."""

    _batches: Batches

    @property
    def num_batches(self) -> int:
        """Number of global batches in a full epoch."""
        return self._batches.num_batches

    @property
    def every_rank_has_examples(self) -> bool:
        """Whether every rank has examples of every batch; the same value on all ranks.

        If not, which takes `shuffle=False`, the last ranks run fewer steps than the others. That
        suits an evaluation, but not training, where all ranks must step together.
        """
        return self._batches.smallest >= self._batches.shard.size

    def exchanges_examples_with(self, other: ResumableDataset) -> bool:
        """Tell whether both are parts of one shuffled dataset, whose examples move between them."""
        if not isinstance(other, DatasetMethods):
            return False
        return bool(self._batches.slices & other._batches.slices)

    def _made_of(self, batches: Batches, endless: bool, same_position: bool) -> Any:
        """Return a `Dataset` of other batches."""
        raise NotImplementedError

    def repeat(self, count: int | None = None, name: str | None = None) -> Any:
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
                f"The last batch has {self._batches.smallest} examples for "
                f"{self._batches.shard.size} processes, so with `repeat()` those without an "
                "example would run ahead of the others; use `shuffle=True`, `drop_remainder=True` "
                "or another `batch_size`."
            )
        return self._made_of(self._batches, endless=True, same_position=True)

    def shard(self, num_shards: Any, index: Any, name: str | None = None) -> Any:
        """Refuse a second split, as scripts written for Horovod make it.

        Raises:
            ConfigurationError: In a job of several processes.
        """
        if self._batches.shard.size > 1:
            raise ConfigurationError(
                "`shard` would leave most examples out: each rank gets its shard of every global "
                "batch of a cluster.dataset already. Delete it."
            )
        return super().shard(num_shards, index, name)

    def rejection_resample(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what reads the dataset twice at a time, for the classes and for the examples.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "`rejection_resample` would pair the classes of one epoch with the examples of "
            "another. Resample the examples before `cluster.dataset`, or pass `class_weight`."
        )

    def map(self, map_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply a function to every batch, as `tf.data.Dataset.map`; `seek` keeps working.

        Raises:
            ConfigurationError: With `deterministic=False`, which gives the batches up to chance.
        """
        if kwargs.get("deterministic", args[1] if len(args) > 1 else None) is False:
            raise _unordered("map(deterministic=False)")
        # As `tf.data` does itself, but not for what is called within functions of ours.
        function = _autograph.tf_convert(map_func, _autograph.control_status_ctx())
        return self._transform(lambda ds: ds.map(function, *args, **kwargs), map_func)

    def prefetch(self, buffer_size: int, name: str | None = None) -> Any:
        """Prepare batches ahead of time, as `tf.data.Dataset.prefetch`; `seek` keeps working."""
        return self._transform(lambda ds: ds.prefetch(buffer_size, name=name))

    def with_options(self, options: Any, name: str | None = None) -> Any:
        """Set options, as `tf.data.Dataset.with_options`; `seek` keeps working.

        Raises:
            ConfigurationError: With `options.deterministic=False`, which gives the order up to
                chance.
        """
        if options.deterministic is False:
            raise _unordered("options.deterministic=False")
        return self._transform(lambda ds: ds.with_options(options, name=name))

    def enumerate(self, start: int = 0, name: str | None = None) -> Any:
        """Return pairs (number, batch), as `tf.data.Dataset.enumerate`; `seek` keeps working.

        The number is `start` plus the step of the epoch, also after a resume and on every rank. For
        an endless dataset it goes on with the next epoch.

        Args:
            start: The first number. Defaults to `0`.
            name: Ignored. Defaults to `None`.
        """
        return self._like_this(EnumeratedBatches(self._batches, int(start), self.endless))

    def cache(self, filename: Any = "", name: str | None = None) -> Any:
        """Keep the batches of this process in memory, if all epochs are the same.

        A pass that starts in the middle before the cache is full reads the earlier batches as well.

        Args:
            filename: Only `""`, for memory. Defaults to `""`.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If the epochs differ, because of `shuffle=True` or the `rng` of
                `map`: all epochs would be the first one. Or if `filename` is given.
        """
        if self._batches.vary:
            raise ConfigurationError(
                "`cache` would repeat the first epoch's order and augmentation in all epochs. "
                "Cache the examples: pass arrays in memory to `cluster.dataset`, or a pipeline "
                "that keeps them, `cluster.dataset(pipeline.cache(), ...)`."
            )
        if not isinstance(filename, str) or filename:
            raise ConfigurationError(
                f"`cache(filename={filename!r})`: all ranks would write one file, and a later "
                "start would read old batches. Leave `filename` out to cache in memory, or cache "
                "the examples: `cluster.dataset(pipeline.cache(filename), ...)`."
            )
        return self._like_this(CachedBatches(self._batches))

    def take(self, count: Any, name: str | None = None) -> Any:
        """Return a dataset of the first batches of every epoch; it can be resumed at any step.

        With `shuffle=True` these are other examples in every epoch. To split examples into a
        training and a validation set, split what you pass to `cluster.dataset`.

        Args:
            count: Number of global batches; -1, or more than there are, takes all.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If no batch is left.

        Returns:
            A `Dataset` with a position of its own; of an endless dataset an ordinary one.
        """
        if self.endless:
            return super().take(count, name)
        return self._slice(f"take({int(count)})", 0, self._clipped(count))

    def skip(self, count: Any, name: str | None = None) -> Any:
        """Return a dataset without the first batches of every epoch; it can be resumed at any step.

        Args:
            count: Number of global batches to leave out. See `take`.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If no batch is left.

        Returns:
            A `Dataset` with a position of its own; of an endless dataset an ordinary one.
        """
        if self.endless:
            return super().skip(count, name)
        return self._slice(f"skip({int(count)})", self._clipped(count), self.num_batches)

    def zip(self, *datasets: Any, name: str | None = None) -> Any:
        """Return tuples of the batches of this dataset and of others, step by step.

        In `tf.data.Dataset`, `zip` is a static method: `tf.data.Dataset.zip((a, b))` returns an
        ordinary dataset, which cannot be resumed. `a.zip(b)` returns one that can. An epoch has as
        many batches as the shortest dataset.

        Args:
            *datasets: Other datasets, not nested. If one is not made by `cluster.dataset`, the
                result is an ordinary dataset.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If some, but not all, are endless, or endless ones have epochs of
                different lengths; or if the ranks have other shares of one than of another.

        Returns:
            A `Dataset` with a position of its own.
        """
        if not datasets:
            raise TypeError("`a.zip(b)` needs another dataset.")
        if not all(isinstance(each, DatasetMethods) for each in datasets):
            return tf.data.Dataset.zip((self, *datasets), name=name)
        parts = (self, *datasets)
        lengths = [each.num_batches for each in parts]
        alike = len({each.endless for each in parts}) == 1
        if not alike or (self.endless and len(set(lengths)) > 1):
            raise ConfigurationError(
                f"`zip`: epochs of {lengths} batches, some of them repeated, do not go together; "
                "zip the datasets without `repeat()`, and call it on the result."
            )
        zipped = ZippedBatches([each._batches for each in parts])
        return self._made_of(zipped, self.endless, same_position=False)

    def concatenate(self, dataset: Any, name: str | None = None) -> Any:
        """Return a dataset whose epochs are an epoch of this dataset and then one of the other.

        Args:
            dataset: The other one. If it is not made by `cluster.dataset`, the result is an
                ordinary dataset.
            name: Ignored. Defaults to `None`.

        Raises:
            ConfigurationError: If a dataset is endless, or a rank would have no examples in the
                middle of an epoch.

        Returns:
            A `Dataset` with a position of its own.
        """
        if not isinstance(dataset, DatasetMethods):
            return super().concatenate(dataset, name)
        if self.endless or dataset.endless:
            raise ConfigurationError(
                "`concatenate` of an endless dataset; concatenate first, then call `repeat()`."
            )
        both = ConcatenatedBatches(self._batches, dataset._batches)
        return self._made_of(both, endless=False, same_position=False)

    def _transform(self, transformation: Callable[[Any], Any], function: Any = None) -> Any:
        return self._like_this(TransformedBatches(self._batches, transformation, function))

    def _like_this(self, batches: Batches) -> Any:
        return self._made_of(batches, self.endless, same_position=True)

    def _clipped(self, count: Any) -> int:
        """Return the number of batches that `take` and `skip` mean; -1 is all."""
        return self.num_batches if int(count) < 0 else min(int(count), self.num_batches)

    def _slice(self, call: str, start: int, stop: int) -> Any:
        if start == stop:
            raise ConfigurationError(
                f"`{call}` leaves none of the {self.num_batches} batches of an epoch."
            )
        return self._made_of(SlicedBatches(self._batches, start, stop), False, same_position=False)


def _unordered(argument: str) -> ConfigurationError:
    return ConfigurationError(
        f"`{argument}` lets batches come in any order, so that a run could not be resumed; leave "
        "it out."
    )
