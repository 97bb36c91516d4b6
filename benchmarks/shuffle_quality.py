"""How evenly a shuffle mixes data that is sorted by class: batches of one epoch, in numbers.

    python benchmarks/shuffle_quality.py

The data are like ImageNet: 1,281,167 examples of 110 KB, sorted by 1,000 classes. Nothing is read;
only the order counts.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from distrib.data.block_order import BlockOrder
from distrib.data.block_size import choose_blocks
from distrib.data.order import Order, Shard

EXAMPLES, EXAMPLE_BYTES, CLASSES, BATCH = 1_281_167, 110_000, 1000, 256
BATCHES = 400


def order(size: int, block_size: int | None) -> Order:
    """Return the order for rank 0 of `size`; of a global shuffle without `block_size`."""
    blocks = choose_blocks(EXAMPLES, EXAMPLE_BYTES, block_size) if block_size else None
    return Order(EXAMPLES, BATCH, True, 7, True, size, Shard(0, size), blocks)


def of_all(size: int) -> np.ndarray:
    """Return batches of a global shuffle."""
    epoch, first = tf.constant(1, tf.int64), tf.constant(1000, tf.int64)
    return order(size, None).indices_of_block(epoch, first, BATCHES).numpy()


def of_blocks(size: int, block_size: int) -> np.ndarray:
    """Return batches of `shuffle="blocks"`."""
    batches = BlockOrder(order(size, block_size)).batches(1, 1000)
    return np.stack([index for _, (_, index) in zip(range(BATCHES), batches, strict=False)])


def of_buffer(examples: int) -> np.ndarray:
    """Return batches of `tf.data`'s shuffle with a buffer."""
    dataset = tf.data.Dataset.range(EXAMPLES).shuffle(examples, seed=1).batch(BATCH)
    return np.stack(list(dataset.skip(1000).take(BATCHES).as_numpy_iterator()))


def line(name: str, index: np.ndarray) -> str:
    """Return a row of the table."""
    fine, coarse = (index * classes // EXAMPLES for classes in (CLASSES, 10))
    present = np.mean([len(np.unique(row)) for row in fine])
    counts = np.stack([(coarse == label).mean(1) for label in range(10)])
    return f"| {name} | {index.shape[1]} | {present:.0f} | {100 * counts.std():.1f} % |"


def main() -> None:
    """Print the table."""
    print(
        "| shuffle | batch | classes in it, of 1,000 | share of a tenth of the classes: 10 % +- |"
    )
    print("|---|---|---|---|")
    few_mib = (2 << 20) // EXAMPLE_BYTES
    for size in (1, 4, 16):
        rank = "" if size == 1 else f", a rank of {size}"
        print(line(f"`shuffle=True`{rank}", of_all(size)))
        print(
            line(f'`shuffle="blocks"`, {few_mib} examples a block{rank}', of_blocks(size, few_mib))
        )
    print(line("`tf.data`, `shuffle(10_000)`", of_buffer(10_000)))


if __name__ == "__main__":
    main()
