"""Which batches of a `PyDataset` a process takes: a pure function of (seed, epoch, step).

In a job of several processes a step takes as many numbers as there are processes, one for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distrib.data.order import Shard
from distrib.data.permutation import hash_of, permute


@dataclass(frozen=True)
class BatchOrder:
    """Which batch each process takes in each step.

    Counted over all epochs, step `g` of a job of `n` processes takes the positions `g * n` to
    `g * n + n - 1`. Positions run through all batches, pass by pass. A pass whose last step would
    leave processes without a batch is filled up with the first batches of the same pass.

    Attributes:
        num_batches: Number of batches; `None` if they never end and are numbered on and on.
        steps: Number of steps in an epoch.
        shuffle: Whether each pass has an order of its own; not for endless batches.
        shard: This process among all.
    """

    num_batches: int | None
    steps: int
    shuffle: bool
    shard: Shard

    @property
    def is_one_pass(self) -> bool:
        """Whether an epoch is one pass over all batches, so that epochs do not depend on ranks."""
        count, size = self.num_batches, self.shard.size
        return count is not None and self.steps == steps_of_pass(count, size)

    def number(self, seed: int, epoch: int, step: int, rank: int) -> int:
        """Return the number of the batch that a process takes in a step."""
        done = epoch * self.steps + step
        if self.num_batches is None:
            return done * self.shard.size + rank
        number, step = divmod(done, steps_of_pass(self.num_batches, self.shard.size))
        position = (step * self.shard.size + rank) % self.num_batches
        if not self.shuffle:
            return position
        return int(permute(np.array([position]), self.num_batches, hash_of(seed, number))[0])

    def numbers(self, seed: int, epoch: int, first: int) -> Iterator[int]:
        """Yield the numbers of this process's batches from a step to the end of the epoch."""
        for step in range(first, self.steps):
            yield self.number(seed, epoch, step, self.shard.rank)


@dataclass(frozen=True)
class EvaluationOrder:
    """Every batch once, in turn: rank 0 takes the first, rank 1 the second, and so on.

    Attributes:
        num_batches: Number of batches.
        shard: This process among all.
    """

    num_batches: int
    shard: Shard

    @property
    def steps(self) -> int:
        """Number of this process's batches."""
        return len(range(self.shard.rank, self.num_batches, self.shard.size))

    def numbers(self, seed: int, epoch: int, first: int) -> Iterator[int]:
        """Yield the numbers of this process's batches from the first one on."""
        return iter(range(self.shard.rank, self.num_batches, self.shard.size))


def steps_of_pass(num_batches: int, size: int) -> int:
    """Return in how many steps `size` processes take all batches once."""
    return -(-num_batches // size)
