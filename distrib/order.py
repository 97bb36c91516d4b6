"""Which examples make up a batch: a pure function of (seed, epoch, step).

Nothing is drawn, buffered or remembered, so any batch of any epoch can be had at once, and the
order is the same on every machine and for every number of replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Order:
    """The order of the examples of a dataset, batch by batch.

    Attributes:
        num_examples: Number of examples of an epoch.
        batch_size: Examples of a global batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the orders, 0 to 2**63 - 1.
        drop_remainder: Whether an epoch ends before a last batch that is not full.
        num_replicas: Copies of the model that share a batch.
    """

    num_examples: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_remainder: bool
    num_replicas: int

    @property
    def num_batches(self) -> int:
        """Batches of a full epoch."""
        full, tail = divmod(self.num_examples, self.batch_size)
        return full + (1 if tail and not self.drop_remainder else 0)

    @property
    def full_batches(self) -> int:
        """Batches of an epoch that hold exactly `batch_size` examples."""
        return self.num_examples // self.batch_size

    @property
    def static_batch_size(self) -> int | None:
        """The batch dimension where all batches have the same, else `None`."""
        return self.batch_size if self.drop_remainder else None

    @property
    def tail(self) -> int:
        """Examples of the last batch, before it is topped up."""
        return self.num_examples - (self.num_batches - 1) * self.batch_size

    @property
    def padded_tail(self) -> int:
        """Examples of the last batch as it is given out: `tail`, or more if a replica were empty.

        `tf.distribute` cuts a batch into pieces of equal size, rounded up, so that 5 examples on 4
        replicas are 2, 2, 1 and 0. Batch normalization in training makes NaN of an empty piece, so
        such a batch of a training set (`shuffle=True`) is topped up to a multiple of the replicas,
        which leaves all pieces the same size. Metrics of an evaluation would count a repeated
        example twice, and they take an empty piece well: there the batch stays as it is.
        """
        if self.shuffle and leaves_a_replica_empty(self.tail, self.num_replicas):
            return -(-self.tail // self.num_replicas) * self.num_replicas
        return self.tail

    def indices(self, epoch: Any, step: Any) -> Any:
        """Return the examples of a batch, in graph or eagerly.

        Args:
            epoch: Scalar int64 tensor.
            step: Scalar int64 tensor, 0 to `num_batches - 1`.

        Returns:
            int64 tensor of shape `[examples of the batch]`, values 0 to `num_examples - 1`.
        """
        start = step * self.batch_size
        if self.drop_remainder:
            index = start + tf.range(self.batch_size, dtype=tf.int64)
        elif self.padded_tail == self.tail:
            stop = tf.minimum(start + self.batch_size, self.num_examples)
            index = tf.range(start, stop, dtype=tf.int64)
        else:
            last = tf.equal(step, self.num_batches - 1)
            size = tf.where(last, tf.constant(self.padded_tail, tf.int64), self.batch_size)
            # Again from the first example of the batch, when its own are used up.
            period = tf.where(last, tf.constant(self.tail, tf.int64), self.batch_size)
            index = start + tf.range(size, dtype=tf.int64) % period
        return self._permute(epoch, index)

    def block(self, epoch: Any, first: Any, steps: int) -> Any:
        """Return the examples of several batches at once, which costs hardly more than one.

        Args:
            epoch: Scalar int64 tensor.
            first: Scalar int64 tensor, the first step.
            steps: How many batches; fewer at the end, since a last batch that is not full is a
                block of its own.

        Returns:
            int64 tensor of shape `[batches, examples of each]`.
        """

        def full() -> Any:
            stop = tf.minimum(first + steps, self.full_batches)
            index = tf.range(first * self.batch_size, stop * self.batch_size, dtype=tf.int64)
            return tf.reshape(self._permute(epoch, index), [-1, self.batch_size])

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


def leaves_a_replica_empty(examples: int, num_replicas: int) -> bool:
    """Whether `tf.distribute` would give a replica nothing of a batch of so many examples."""
    piece = -(-examples // num_replicas)
    return piece * (num_replicas - 1) >= examples
