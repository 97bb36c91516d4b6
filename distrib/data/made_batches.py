"""Batches that are made of other batches, by the methods of a `cluster.dataset`.

Which batches a step takes is arithmetic on epoch and step. So a pass can start at any step, also
over what `take`, `skip`, `zip`, `concatenate`, `enumerate` and `cache` have made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distrib.data.batches import Batches, Columns
from distrib.data.order import Shard
from distrib.errors import ConfigurationError


class _MadeOfOne(Batches):
    """As many batches as those that they are made of, and alike in all that is not said.

    Args:
        inner: What they are made of.
        sizes: Defaults to `None`: those of `inner`.
    """

    def __init__(self, inner: Batches, sizes: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__(inner.sizes if sizes is None else sizes, inner.shard)
        self.vary, self.functions = inner.vary, inner.functions
        self.sources, self.slices = inner.sources, inner.slices
        self._inner = inner

    def describe(self) -> dict[str, Any]:
        """See `Batches`."""
        return self._inner.describe()

    @property
    def columns(self) -> Columns:
        """See `Batches`."""
        return self._inner.columns


class TransformedBatches(_MadeOfOne):
    """What a method of `tf.data.Dataset` makes of each batch by itself.

    Args:
        inner: The batches.
        transformation: Calls the method.
        function: What the user has passed to it. Defaults to `None`, for nothing.
    """

    def __init__(
        self, inner: Batches, transformation: Callable[[Any], Any], function: Any = None
    ) -> None:
        super().__init__(inner)
        self._transformation = transformation
        if function is not None:
            number = sum(name.startswith("Dataset.map") for name in inner.functions) + 1
            name = "Dataset.map" if number == 1 else f"Dataset.map-{number}"
            self.functions = {**inner.functions, name: function}

    def over(self, passes: Any) -> Any:
        """See `Batches`."""
        return self._transformation(self._inner.over(passes))


class SlicedBatches(_MadeOfOne):
    """A range of the batches of each epoch.

    Args:
        inner: The batches.
        start: First step.
        stop: Step after the last one.
    """

    def __init__(self, inner: Batches, start: int, stop: int) -> None:
        super().__init__(inner, _cut(inner.sizes, start, stop))
        self.slices = inner.sources if inner.vary else frozenset()
        self._start = start

    def over(self, passes: Any) -> Any:
        """See `Batches`."""
        return _by_epoch(
            passes,
            lambda epoch, step: _limited(
                self._inner.over(_one_pass(epoch, step + self._start)), self.own_batches, step
            ),
        )

    def describe(self) -> dict[str, Any]:
        """See `Batches`."""
        stop = self._start + self.num_batches
        return {**self._inner.describe(), "steps": [self._start, stop]}


class EnumeratedBatches(_MadeOfOne):
    """Pairs of the number of a batch and the batch.

    Args:
        inner: The batches.
        start: The first number.
        across_epochs: Whether the numbers go on with the next epoch, instead of starting again.
    """

    def __init__(self, inner: Batches, start: int, across_epochs: bool) -> None:
        super().__init__(inner)
        self._first, self._across_epochs = start, across_epochs

    def over(self, passes: Any) -> Any:
        """See `Batches`."""

        def numbered(epoch: Any, step: Any) -> Any:
            done = epoch * self.num_batches if self._across_epochs else 0
            return self._inner.over(_one_pass(epoch, step)).enumerate(self._first + done + step)

        return _by_epoch(passes, numbered)


class CachedBatches(_MadeOfOne):
    """The batches of one epoch, kept in memory for all others, which are the same.

    Args:
        inner: The batches; they do not `vary`.
    """

    def __init__(self, inner: Batches) -> None:
        super().__init__(inner)
        first = tf.constant(0, tf.int64)
        self._cached = inner.over(_one_pass(first, first)).cache()

    def over(self, passes: Any) -> Any:
        """See `Batches`."""
        return _by_epoch(passes, lambda epoch, step: self._cached.skip(step))


class _MadeOfSeveral(Batches):
    """Batches made of several others.

    Args:
        parts: These others.
        sizes: See `Batches`.
    """

    kind: str

    def __init__(self, parts: Sequence[Batches], sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__(sizes, parts[0].shard)
        self._parts = tuple(parts)
        self.sources = frozenset().union(*(part.sources for part in parts))
        self.slices = frozenset().union(*(part.slices for part in parts))
        self.vary = any(part.vary for part in parts)
        self.functions = {
            f"{name} of part {number}": function
            for number, part in enumerate(parts)
            for name, function in part.functions.items()
        }

    def describe(self) -> dict[str, Any]:
        """See `Batches`."""
        described: dict[str, Any] = {"source": self.kind, "parts": len(self._parts)}
        for number, part in enumerate(self._parts):
            described |= {f"{key} of part {number}": it for key, it in part.describe().items()}
        return described

    @property
    def columns(self) -> Columns:
        """See `Batches`."""
        return [
            (f"part {number} {path}", column)
            for number, part in enumerate(self._parts)
            for path, column in part.columns
        ]


class ZippedBatches(_MadeOfSeveral):
    """Tuples of batches, as many as the shortest part has.

    Raises:
        ConfigurationError: If this process has other shares of one part than of another.
    """

    kind = "zip"

    def __init__(self, parts: Sequence[Batches]) -> None:
        shortest = min(part.num_batches for part in parts)
        cut = [_cut(part.sizes, 0, shortest) for part in parts]
        size = parts[0].shard.size
        shares = [_shares(each, size) for each in cut]
        if any(each != shares[0] for each in shares):
            raise ConfigurationError(
                f"`zip`: the datasets' batches are split otherwise among {size} ranks; use "
                "`batch_size`s that are multiples of that number, and `drop_remainder=True`."
            )
        super().__init__(parts, cut[0])

    def over(self, passes: Any) -> Any:
        """See `Batches`."""

        def zipped(epoch: Any, step: Any) -> Any:
            parts = tuple(part.over(_one_pass(epoch, step)) for part in self._parts)
            return _limited(tf.data.Dataset.zip(parts), self.own_batches, step)

        return _by_epoch(passes, zipped)


class ConcatenatedBatches(_MadeOfSeveral):
    """The batches of an epoch of one part, then those of the other part.

    Raises:
        ConfigurationError: If a rank would have no examples in the middle of an epoch.
    """

    kind = "concatenate"

    def __init__(self, first: Batches, second: Batches) -> None:
        if first.smallest < first.shard.size:
            raise ConfigurationError(
                f"`concatenate`: a batch of {first.smallest} examples in the middle would leave "
                f"some of {first.shard.size} ranks without examples; pass `drop_remainder=True` or "
                "`shuffle=True` to the first `cluster.dataset`, or another `batch_size`."
            )
        super().__init__((first, second), (*first.sizes, *second.sizes))

    def over(self, passes: Any) -> Any:
        """See `Batches`."""
        first, second = self._parts
        length = tf.constant(first.num_batches, tf.int64)

        def concatenated(epoch: Any, step: Any) -> Any:
            head = first.over(_one_pass(epoch, tf.minimum(step, length)))
            return head.concatenate(second.over(_one_pass(epoch, tf.maximum(step - length, 0))))

        return _by_epoch(passes, concatenated)


def _by_epoch(passes: Any, batches: Callable[[Any, Any], Any]) -> Any:
    return passes.flat_map(tf.autograph.experimental.do_not_convert(batches))


def _one_pass(epoch: Any, step: Any) -> Any:
    return tf.data.Dataset.from_tensors((epoch, step))


def _limited(batches: Any, end: int, step: Any) -> Any:
    """Return the batches from `step` up to `end`; `take` of a negative number would take all."""
    return batches.take(tf.maximum(tf.constant(end, tf.int64) - step, 0))


def _cut(sizes: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Return the sizes of the batches `start` to `stop - 1`."""
    cut, done = [], 0
    for count, examples in sizes:
        left = min(done + count, stop) - max(done, start)
        cut.append((max(left, 0), examples))
        done += count
    return cut


def _shares(sizes: Sequence[tuple[int, int]], size: int) -> list[Any]:
    """Return what the ranks' shares of batches of these sizes depend on, equal ones together."""
    shares: list[Any] = []
    for count, examples in sizes:
        share = [Shard(rank, size).count(examples) / examples for rank in range(size)]
        if count and shares and shares[-1][1] == share:
            shares[-1] = (shares[-1][0] + count, share)
        elif count:
            shares.append((count, share))
    return shares
