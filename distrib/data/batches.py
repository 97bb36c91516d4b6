"""The global batches of an epoch, as a pure function of (epoch, step); here those of a source."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distrib.data.arrays import Array, leaves_with_paths
from distrib.data.order import Order, Shard
from distrib.data.sources import Source

Columns = list[tuple[str, Any]]


class Batches:
    """The batches of an epoch, and passes over them.

    Args:
        sizes: The numbers of examples in the global batches, as pairs: how many batches follow each
            other that have so many examples, and how many examples.
        shard: This process's shard of each batch.

    Attributes:
        sizes: As given.
        shard: As given.
        vary: Whether an epoch differs from the one before.
        functions: The user's code that makes the batches, by the argument or the method that it was
            passed to.
        sources: The batches of sources that these are made of.
        slices: Those of them that vary, if these are a part of each epoch.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], shard: Shard) -> None:
        self.sizes = tuple((count, examples) for count, examples in sizes if count)
        self.shard = shard
        self.vary = True
        self.functions: dict[str, Any] = {}
        self.sources: frozenset[Batches] = frozenset({self})
        self.slices: frozenset[Batches] = frozenset()

    @property
    def num_batches(self) -> int:
        """Number of global batches in a full epoch."""
        return sum(count for count, _ in self.sizes)

    @property
    def own_batches(self) -> int:
        """Number of batches in an epoch of which this process has examples: the first ones."""
        return sum(count for count, examples in self.sizes if self.shard.count(examples))

    @property
    def smallest(self) -> int:
        """Number of examples in the smallest batch."""
        return min(examples for _, examples in self.sizes)

    def share(self, step: int) -> float:
        """Return the weight of this process's mean over a batch in the global mean."""
        ends = itertools.accumulate(count for count, _ in self.sizes)
        examples = next(each for end, (_, each) in zip(ends, self.sizes, strict=True) if step < end)
        return self.shard.count(examples) * self.shard.size / examples

    def places(self, steps: int) -> list[Array]:
        """Return where the examples of each process are among those of an epoch's first steps."""
        ranks = range(self.shard.size)
        found: list[list[Array]] = [[np.arange(0)] for _ in ranks]
        begin = 0
        for count, examples in self.sizes:
            count = min(count, steps)
            starts = begin + examples * np.arange(count)[:, np.newaxis]
            for rank in ranks:
                start, stop = Shard(rank, self.shard.size).bounds(examples)
                found[rank].append((starts + np.arange(start, stop)).ravel())
            begin, steps = begin + count * examples, steps - count
        return [np.concatenate(parts) for parts in found]

    def over(self, passes: Any) -> Any:
        """Return a `tf.data.Dataset` of batches.

        Args:
            passes: `tf.data.Dataset` of pairs of int64 scalars: an epoch, and its first step.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the properties under which equal positions mean equal batches, as JSON values."""
        raise NotImplementedError

    @property
    def columns(self) -> Columns:
        """Paths and arrays, by whose contents other data are told apart."""
        raise NotImplementedError


class SourceBatches(Batches):
    """The batches of a source.

    Args:
        source: Of the examples.
        order: Which examples make up a batch.
        functions: See `Batches`. Defaults to `None`, for no functions.
        vary: Whether an epoch without shuffling differs from the one before. Defaults to `False`.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        functions: dict[str, Any] | None = None,
        vary: bool = False,
    ) -> None:
        rest = order.num_batches - order.full_batches
        sizes = (order.full_batches, order.batch_size), (rest, order.padded_last_batch_size)
        super().__init__(sizes, order.shard)
        self.vary = bool(order.shuffle) or vary
        self.functions = functions or {}
        self._source, self._order = source, order

    # None of this package's pipeline functions branches on a tensor in Python. AutoGraph would
    # search them for branches all the same, which adds half a second to every start.
    @tf.autograph.experimental.do_not_convert
    def over(self, passes: Any) -> Any:
        """See `Batches`."""
        return self._source.batches(passes, self._order).prefetch(tf.data.AUTOTUNE)

    def describe(self) -> dict[str, Any]:
        """See `Batches`."""
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
        }

    @property
    def columns(self) -> Columns:
        """See `Batches`."""
        return self._source.columns


def _shape(spec: Any) -> list[int | None] | None:
    return None if spec.shape.rank is None else spec.shape.as_list()
