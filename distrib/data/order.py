"""Which examples make up a batch: a pure function of (seed, epoch, step).

The order has no state, so any batch of any epoch is available at once. It is the same on every
machine and for every number of processes and replicas: each process takes its own shard of every
global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

# TensorFlow's `RandomIndexShuffle` computes logarithms in double precision, which is exact so far.
MAX_EXAMPLES = 2**48


@dataclass(frozen=True)
class Shard:
    """The shard of every global batch that one process of a job takes.

    Shards are contiguous and in the order of the ranks. Their sizes differ by at most one, and the
    first ranks have the larger ones: 5 examples on 4 ranks are 2, 1, 1 and 1.

    Attributes:
        rank: The process's number, 0 to `size - 1`. Defaults to `0`.
        size: Number of processes. Defaults to `1`.
    """

    rank: int = 0
    size: int = 1

    def count(self, examples: int) -> int:
        """Return the number of this shard's examples in a batch of `examples`."""
        return examples // self.size + (self.rank < examples % self.size)

    def bounds(self, examples: int) -> tuple[int, int]:
        """Return this shard's rows in a batch of `examples`, as (start, stop)."""
        start = self.rank * (examples // self.size) + min(self.rank, examples % self.size)
        return start, start + self.count(examples)


@dataclass(frozen=True)
class Blocks:
    """Sizes for an order in which blocks of examples are shuffled; see `block_order.py`.

    Attributes:
        size: Number of consecutive examples that are read together.
        window: Number of blocks that a global batch is drawn from.
    """

    size: int
    window: int


@dataclass(frozen=True)
class Order:
    """The order of a dataset's examples, batch by batch.

    Attributes:
        num_examples: Number of examples in an epoch.
        batch_size: Number of examples in a global batch.
        shuffle: Whether each epoch has an order of its own.
        seed: Seed of these orders, 0 to 2**63 - 1.
        drop_remainder: Whether to drop a last batch that is not full.
        num_replicas: Copies of the model that share a global batch, over all processes.
        shard: This process's shard of each batch. Defaults to the whole batch.
        blocks: Sizes of blocks, if these are shuffled instead of single examples; `block_order.py`
            computes the indices then. Defaults to `None`.
        pad_last_batch: Whether to pad a last batch that would leave a replica empty. Defaults to
            `None`, for `shuffle`.
    """

    num_examples: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_remainder: bool
    num_replicas: int
    shard: Shard = Shard()
    blocks: Blocks | None = None
    pad_last_batch: bool | None = None

    @property
    def num_batches(self) -> int:
        """Number of global batches in a full epoch."""
        full, remainder = divmod(self.num_examples, self.batch_size)
        return full + (1 if remainder and not self.drop_remainder else 0)

    @property
    def full_batches(self) -> int:
        """Number of global batches in an epoch that hold exactly `batch_size` examples."""
        return self.num_examples // self.batch_size

    @property
    def own_batches(self) -> int:
        """Number of batches in an epoch of which this process has examples: the first ones."""
        if self.shard.rank < self.padded_last_batch_size:
            return self.num_batches
        return self.full_batches if self.shard.rank < self.batch_size else 0

    @property
    def own_batch_size(self) -> int:
        """Number of this process's examples in a full batch."""
        return self.shard.count(self.batch_size)

    @property
    def static_batch_size(self) -> int | None:
        """The batch dimension if it is the same for all batches of this process, else `None`."""
        return self.own_batch_size if self.drop_remainder else None

    @property
    def last_batch_size(self) -> int:
        """Number of examples in the last global batch, before padding."""
        return min(self.batch_size, self.num_examples - (self.num_batches - 1) * self.batch_size)

    @property
    def padded_last_batch_size(self) -> int:
        """Number of examples in the last global batch, after padding.

        In training, batch normalization turns an empty shard into NaN. So a last batch of a
        training set (`shuffle=True`, unless `pad_last_batch` tells otherwise) that would leave a
        replica empty is padded to a multiple of the replicas, which makes all shards the same size.
        An evaluation would count the repeated examples twice in its metrics, so its last batch is
        not padded: `tf.distribute` accepts an empty shard in an evaluation, and a process without
        examples skips the batch.
        """
        size = self.last_batch_size
        pads = self.shuffle if self.pad_last_batch is None else self.pad_last_batch
        if pads and leaves_a_replica_empty(size, self.num_replicas, self.shard.size):
            return -(-size // self.num_replicas) * self.num_replicas
        return size

    def share(self, step: int) -> float:
        """Return the weight of this process's mean over a batch in the global mean."""
        is_full = step < self.full_batches
        examples = self.batch_size if is_full else self.padded_last_batch_size
        return self.shard.count(examples) * self.shard.size / examples

    def rows(self, step: Any) -> Any:
        """Return which rows of a global batch this process takes; works in a graph and eagerly.

        Args:
            step: Scalar int64 tensor, 0 to `own_batches - 1`.

        Returns:
            int64 tensor of shape `[examples of the shard]`.
        """
        full = self.shard.bounds(self.batch_size)
        last = self.shard.bounds(self.padded_last_batch_size)
        if self.full_batches == self.num_batches:
            return tf.range(*full, dtype=tf.int64)
        is_last = tf.equal(step, self.full_batches)

        def select(of_last: int, of_full: int) -> Any:
            # Equal values need no operation: each one adds to the time in which an epoch starts.
            same = of_last == of_full
            return of_full if same else tf.where(is_last, tf.constant(of_last, tf.int64), of_full)

        rows = tf.range(select(last[0], full[0]), select(last[1], full[1]), dtype=tf.int64)
        if self.padded_last_batch_size == self.last_batch_size:
            return rows
        # Padding repeats the batch's examples from the first one on.
        return rows % select(self.last_batch_size, self.batch_size)

    def own_rows(self, step: int) -> npt.NDArray[np.int64]:
        """Return `rows` as a NumPy array."""
        if step < self.full_batches:
            return np.arange(*self.shard.bounds(self.batch_size))
        rows = np.arange(*self.shard.bounds(self.padded_last_batch_size))
        return rows % self.last_batch_size

    def indices(self, epoch: Any, step: Any) -> Any:
        """Return the indices of this process's examples in a batch; works in a graph and eagerly.

        Args:
            epoch: Scalar int64 tensor.
            step: Scalar int64 tensor, 0 to `own_batches - 1`.

        Returns:
            int64 tensor of shape `[examples of the shard]`, values 0 to `num_examples - 1`.
        """
        return self._permute(epoch, step * self.batch_size + self.rows(step))

    def indices_of_block(self, epoch: Any, first: Any, steps: int) -> Any:
        """Return `indices` for a block of batches, at hardly more cost than for one.

        Args:
            epoch: Scalar int64 tensor.
            first: Scalar int64 tensor, the first step.
            steps: Number of batches. A block at the end of the epoch may have fewer, because a last
                batch that is not full is a block by itself.

        Returns:
            int64 tensor of shape `[batches, examples of the shard]`.
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
        # A block cipher on the range of the indices, so only the given indices are computed.
        # `tf.random.experimental.index_shuffle` is the same operation with 4 rounds and the seed as
        # key. For fewer than 65,537 examples TensorFlow 2.21 uses only 8 bits of each seed number,
        # so epoch 256 repeats the order of epoch 0 and seed 256 that of seed 0; and with 4 rounds,
        # batches of data sorted by class stay uneven. A hashed key and 12 rounds fix both.
        shuffled = tf.raw_ops.RandomIndexShuffle(
            index=index,
            seed=self.epoch_key(epoch, 3),
            max_index=tf.constant(self.num_examples - 1, tf.int64),
            rounds=12,
        )
        # For one more example than 2**16, 2**18 and so on, TensorFlow 2.21 uses a cipher of a bit
        # too few, which takes the last example for the first one. All others are permuted.
        last = self.num_examples - 1
        if last >= 2**16 and last.bit_count() == 1 and last.bit_length() % 2:
            return tf.where(tf.equal(index, last), last, shuffled)
        return shuffled

    def epoch_key(self, epoch: Any, size: int) -> Any:
        """Return random int64 numbers of shape `[size]` that depend on seed and epoch only."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), epoch])
        return tf.random.stateless_uniform([size], seed, None, None, tf.int64, alg="philox")


def leaves_a_replica_empty(examples: int, num_replicas: int, size: int = 1) -> bool:
    """Tell whether a replica would get no example of a batch.

    A batch is divided evenly among the processes; see `Shard`. Within a process, `tf.distribute`
    splits the shard into pieces of equal size, rounded up: 5 examples on 4 replicas are 2, 2, 1
    and 0.

    Args:
        examples: Number of examples in the global batch.
        num_replicas: Number of replicas, over all processes.
        size: Number of processes, each with equally many replicas. Defaults to `1`.
    """
    replicas = num_replicas // size
    smallest, largest = examples // size, -(-examples // size)
    return any(-(-own // replicas) * (replicas - 1) >= own for own in (smallest, largest))
