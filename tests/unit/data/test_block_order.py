import itertools

import numpy as np
import pytest

from distrib.data.block_order import BlockOrder
from distrib.data.order import Blocks, Order, Shard


def block_order(n, batch_size, blocks, rank=0, size=1, drop_remainder=False):
    shard = Shard(rank, size)
    return BlockOrder(Order(n, batch_size, True, 5, drop_remainder, size, shard, Blocks(*blocks)))


def batches(order, epoch=2, step=0):
    return [index.tolist() for _, index in order.batches(epoch, step)]


CASES = [
    (1, 1, (1, 64)),
    (103, 6, (7, 64)),
    (103, 32, (300, 64)),
    (1000, 96, (7, 2)),
    (200, 32, (1, 1)),
    (1003, 48, (10, 64)),
]


@pytest.mark.parametrize(("n", "batch_size", "blocks"), CASES)
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_an_epoch_holds_every_example_once(n, batch_size, blocks, drop_remainder):
    order = block_order(n, batch_size, blocks, drop_remainder=drop_remainder)
    for epoch in (0, 1):
        examples = list(itertools.chain(*batches(order, epoch)))
        assert len({*examples}) == len(examples)
        assert len(examples) == (n // batch_size * batch_size if drop_remainder else n)
        assert 0 <= min(examples) <= max(examples) < n
    assert n == 1 or batches(order, 0) != batches(order, 1)


@pytest.mark.parametrize(("n", "batch_size", "blocks"), CASES[1:])
def test_batches_are_the_same_from_any_step_and_on_any_number_of_ranks(n, batch_size, blocks):
    whole = batches(block_order(n, batch_size, blocks))
    for step in range(len(whole) + 1):
        assert batches(block_order(n, batch_size, blocks), step=step) == whole[step:]
    for size in (2, 3, 4):
        ranks = [batches(block_order(n, batch_size, blocks, r, size)) for r in range(size)]
        for batch, *shards in zip(whole, *ranks, strict=True):
            # The last batch may be padded with its own first examples.
            assert list(itertools.chain(*shards))[: len(batch)] == batch


@pytest.mark.parametrize(("n", "batch_size", "blocks"), CASES)
def test_block_uses_name_the_blocks_of_every_batch_from_any_step(n, batch_size, blocks):
    for size in (1, 3):
        order = block_order(n, batch_size, blocks, 0, size)
        for first in (0, order.order.own_batches // 2):
            uses = list(order.block_uses(2, first))
            assert [use.first for use in uses] == sorted(use.first for use in uses)
            for step, index in order.batches(2, first):
                here = {use.block for use in uses if use.first <= step <= use.last}
                assert {*(index // blocks[0]).tolist()} <= here
                assert len(here) <= 2 * (blocks[1] + batch_size)


def loads(order):
    """Return how many blocks a pass reads, if a block is kept as long as it is needed."""
    last: dict[int, int] = {}
    count = 0
    for use in order.block_uses(0, 0):
        count += use.block not in last or last[use.block] < use.first - 1
        last[use.block] = max(use.last, last.get(use.block, 0))
    return count


def test_ranks_read_blocks_of_their_own_and_none_twice():
    n, size = 100_000, 50
    for ranks in (1, 4):
        read = [loads(block_order(n, 64, (size, 64), rank, ranks)) for rank in range(ranks)]
        # But for blocks at the borders of the 16 lanes, and those of the last batch.
        assert n // size <= sum(read) <= n // size + 16 + 2 * ranks
        assert max(read) <= n // size / ranks + 17
    three = [loads(block_order(n, 48, (size, 64), rank, 3)) for rank in range(3)]
    assert sum(three) < 1.2 * n / size


def test_reading_is_even():
    order = block_order(200_000, 256, (100, 64))
    starts = [use.first for use in order.block_uses(0, 0)]
    # 2.56 blocks a batch; all lanes' windows begin at different steps.
    counts = np.bincount(starts)[1:]
    assert counts.max() <= 2 * 64 / 16 + 2
    assert np.add.reduceat(counts, np.arange(0, len(counts) - 20, 20)).max() < 2 * 20 * 2.56


def test_a_batch_of_data_sorted_by_class_mixes_a_window_of_blocks():
    n, classes, batch_size = 100_000, 10, 256
    order = block_order(n, batch_size, (100, 64))
    labels = np.array(batches(order)[:-1]) * classes // n
    counts = np.stack([(labels == label).sum(1) for label in range(classes)], 1)
    assert (counts > 0).mean() > 0.99
    # Of 64 blocks, 6.4 are of a class: the standard deviation is near 0.35 of the mean.
    assert counts.std() < 0.5 * counts.mean()


@pytest.mark.parametrize("n", [10**9, 2**33 + 1, 2**48])
def test_a_position_far_inside_a_large_epoch_is_found_at_once(n):
    order = block_order(n, 256, (64, 64))
    step = order.order.num_batches // 2
    batch = next(order.batches(3, step))[1]
    assert len({*batch.tolist()}) == 256
    assert batch.min() >= 0
    assert batch.max() < n
    # Not in one part of the data.
    assert len({*(batch // (n // 16)).tolist()}) > 12
    assert {*(batch // 64).tolist()} <= {
        use.block for use in itertools.islice(order.block_uses(3, step), 80)
    }


def test_the_order_of_a_seed_does_not_change():
    # Checkpoints rely on it.
    assert batches(block_order(20, 8, (3, 2)), epoch=1) == [
        [1, 15, 2, 16, 9, 10, 11, 7],
        [17, 12, 14, 13, 6, 19, 18, 8],
        [3, 5, 4, 0],
    ]
    assert next(block_order(2**33, 4, (300, 64)).batches(7, 2**31 - 1))[1].tolist() == [
        4921138643,
        5128395307,
        5067623163,
        7440539980,
    ]
