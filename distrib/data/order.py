"""Which examples make up a batch: a pure function of (seed, epoch, step).

Nothing is drawn, buffered or remembered, so any batch of any epoch can be had at once, and the
order is the same on every machine and for every number of processes and replicas: a process only
cuts its own piece out of each global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Shard:
    """The piece of every global batch that one process of a job takes.

    The pieces of a batch are contiguous and in the order of the ranks. Their sizes differ by one
    at most, the first ones being the larger: 5 examples on 4 ranks are 2, 1, 1 and 1.

    Attributes:
        rank: The process's number, 0 to `size - 1`.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def count(self, examples: int) -> int:
        """Examples of the piece, of a batch of so many."""
        return examples // self.size + (self.rank < examples % self.size)

    def bounds(self, examples: int) -> tuple[int, int]:
        """Where in a batch of so many examples the piece starts, and where it stops."""
        start = self.rank * (examples // self.size) + min(self.rank, examples % self.size)
        return start, start + self.count(examples)


@dataclass(frozen=True)
class Order:
    """The order of the examples of a dataset, batch by batch.

    Attributes:
        num_examples: Number of examples of an epoch.
        batch_size: Examples of a global batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the orders, 0 to 2**63 - 1.
        drop_remainder: Whether an epoch ends before a last batch that is not full.
        num_replicas: Copies of the model that share a batch, over all processes.
        shard: What this process takes of each batch.
    """

    num_examples: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_remainder: bool
    num_replicas: int
    shard: Shard = Shard()

    @property
    def num_batches(self) -> int:
        """Global batches of a full epoch."""
        full, tail = divmod(self.num_examples, self.batch_size)
        return full + (1 if tail and not self.drop_remainder else 0)

    @property
    def full_batches(self) -> int:
        """Global batches of an epoch that hold exactly `batch_size` examples."""
        return self.num_examples // self.batch_size

    @property
    def own_batches(self) -> int:
        """Batches of an epoch of which this process has examples; they come before the others."""
        if self.shard.rank < self.padded_tail:
            return self.num_batches
        return self.full_batches if self.shard.rank < self.batch_size else 0

    @property
    def own_batch_size(self) -> int:
        """Examples of a full batch that are this process's."""
        return self.shard.count(self.batch_size)

    @property
    def static_batch_size(self) -> int | None:
        """The batch dimension where all batches of this process have the same, else `None`."""
        return self.own_batch_size if self.drop_remainder else None

    @property
    def tail(self) -> int:
        """Examples of the last global batch, before it is topped up."""
        return min(self.batch_size, self.num_examples - (self.num_batches - 1) * self.batch_size)

    @property
    def padded_tail(self) -> int:
        """Examples of the last batch as it is given out: `tail`, or more if a replica were empty.

        Batch normalization in training makes NaN of an empty piece, so such a batch of a training
        set (`shuffle=True`) is topped up to a multiple of the replicas, which leaves all pieces the
        same size. Metrics of an evaluation would count a repeated example twice: there the batch
        stays as it is. `tf.distribute` takes an empty piece well then, and a process skips it.
        """
        if self.shuffle and leaves_a_replica_empty(self.tail, self.num_replicas, self.shard.size):
            return -(-self.tail // self.num_replicas) * self.num_replicas
        return self.tail

    def share(self, step: int) -> float:
        """Return the weight of this process's mean over a batch in the mean of all processes'."""
        examples = self.batch_size if step < self.full_batches else self.padded_tail
        return self.shard.count(examples) * self.shard.size / examples

    def rows(self, step: Any) -> Any:
        """Return which rows of a global batch this process takes, in graph or eagerly.

        Args:
            step: Scalar int64 tensor, 0 to `own_batches - 1`.

        Returns:
            int64 tensor of shape `[examples of the piece]`.
        """
        full, last = self.shard.bounds(self.batch_size), self.shard.bounds(self.padded_tail)
        if self.full_batches == self.num_batches:
            return tf.range(*full, dtype=tf.int64)
        is_last = tf.equal(step, self.full_batches)

        def either(of_last: int, of_full: int) -> Any:
            # What need not be computed is left out, since each operation adds to the time that an
            # epoch takes to begin.
            same = of_last == of_full
            return of_full if same else tf.where(is_last, tf.constant(of_last, tf.int64), of_full)

        rows = tf.range(either(last[0], full[0]), either(last[1], full[1]), dtype=tf.int64)
        if self.padded_tail == self.tail:
            return rows
        # Again from the first example of the batch, when its own are used up.
        return rows % either(self.tail, self.batch_size)

    def indices(self, epoch: Any, step: Any) -> Any:
        """Return this process's examples of a batch, in graph or eagerly.

        Args:
            epoch: Scalar int64 tensor.
            step: Scalar int64 tensor, 0 to `own_batches - 1`.

        Returns:
            int64 tensor of shape `[examples of the piece]`, values 0 to `num_examples - 1`.
        """
        return self._permute(epoch, step * self.batch_size + self.rows(step))

    def block(self, epoch: Any, first: Any, steps: int) -> Any:
        """Return the examples of several batches at once, which costs hardly more than one.

        Args:
            epoch: Scalar int64 tensor.
            first: Scalar int64 tensor, the first step.
            steps: How many batches; fewer at the end, since a last batch that is not full is a
                block of its own.

        Returns:
            int64 tensor of shape `[batches, examples of each piece]`.
        """

        def full() -> Any:
            stop = tf.minimum(first + steps, self.full_batches)
            index = tf.range(first * self.batch_size, stop * self.batch_size, dtype=tf.int64)
            if self.shard.size > 1:
                rows = slice(*self.shard.bounds(self.batch_size))
                index = tf.reshape(tf.reshape(index, [-1, self.batch_size])[:, rows], [-1])
            return tf.reshape(self._permute(epoch, index), [-1, self.own_batch_size])

        if self.full_batches == self.num_batches:
            return full()
        return tf.cond(
            first < self.full_batches, full, lambda: self.indices(epoch, first)[tf.newaxis]
        )

    def _permute(self, epoch: Any, index: Any) -> Any:
        if not self.shuffle:
            return index
        # A block cipher on the range of the indices, so that only those given are computed.
        # `tf.random.experimental.index_shuffle` is the same with 4 rounds and the seed as its key.
        # In TensorFlow 2.21 that uses 8 bits of each number of the seed below 65,537 examples, so
        # that epoch 256 has the order of epoch 0 and seed 256 that of seed 0, and leaves batches of
        # data sorted by class uneven. With 12 rounds no such trace is left.
        return tf.raw_ops.RandomIndexShuffle(
            index=index,
            seed=self.key(epoch, 3),
            max_index=tf.constant(self.num_examples - 1, tf.int64),
            rounds=12,
        )

    def key(self, epoch: Any, size: int) -> Any:
        """Return random int64 numbers, shape `[size]`, made of the seed and the epoch alone."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), epoch])
        return tf.random.stateless_uniform([size], seed, None, None, tf.int64, alg="philox")


def leaves_a_replica_empty(examples: int, num_replicas: int, size: int = 1) -> bool:
    """Whether a replica would get nothing of a batch of so many examples.

    Processes cut it evenly; see `Shard`. Within one, `tf.distribute` cuts what it gets into pieces
    of equal size, rounded up, so that 5 examples on 4 replicas are 2, 2, 1 and 0.

    Args:
        examples: Of the global batch.
        num_replicas: Over all processes.
        size: Number of processes, each with as many replicas.
    """
    replicas = num_replicas // size
    fewest, most = examples // size, -(-examples // size)
    return any(-(-own // replicas) * (replicas - 1) >= own for own in (fewest, most))
