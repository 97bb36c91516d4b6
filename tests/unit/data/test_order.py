import itertools

import numpy as np
import pytest
import tensorflow as tf

from distrib.data.order import Order, Shard, leaves_a_replica_empty


def test_orders_do_not_repeat_after_256_epochs():
    order = Order(1000, 1000, True, 7, False, 1)
    orders = [order.indices(tf.constant(e, tf.int64), tf.constant(0, tf.int64)) for e in range(600)]
    assert len({bytes(o.numpy()) for o in orders}) == 600


def test_index_shuffle_of_tensorflow_still_repeats_itself():
    # The reason why `Order` calls the raw operation. When this fails, TensorFlow has fixed it.
    def shuffled(seed):
        return tf.random.experimental.index_shuffle(tf.range(1000), seed, 999).numpy().tolist()

    assert shuffled([7, 0]) == shuffled([7, 256]) == shuffled([263, 0])


def test_batches_of_data_sorted_by_class_are_as_mixed_as_random_ones():
    examples, batch, classes = 60_000, 100, 10
    order = Order(examples, examples, True, 7, False, 1)
    for epoch in range(5):
        index = order.indices(tf.constant(epoch, tf.int64), tf.constant(0, tf.int64)).numpy()
        assert abs(np.corrcoef(index[:-1], index[1:])[0, 1]) < 0.02
        labels = (index * classes // examples).reshape(-1, batch)
        counts = np.stack([(labels == label).sum(1) for label in range(classes)], 1)
        # Chi-squared of 9 degrees of freedom.
        values = ((counts - batch / classes) ** 2 / (batch / classes)).sum(1)
        assert 8.3 < values.mean() < 9.7
        assert np.percentile(values, 99) < 26


@pytest.mark.parametrize("n", [2**16, 2**16 + 1, 2**16 + 2, 2**17 + 1, 2**18 + 1])
def test_every_example_is_in_an_epoch_beside_powers_of_two(n):
    index = Order(n, n, True, 7, False, 1).indices(
        tf.constant(1, tf.int64), tf.constant(0, tf.int64)
    )
    assert len(np.unique(index)) == n


def test_index_shuffle_of_tensorflow_still_repeats_an_example():
    # The reason for the exception in `Order`. When this fails, TensorFlow has fixed it.
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=[0, 2**16], seed=[1, 2, 3], max_index=2**16, rounds=12
    )
    assert shuffled[0] == shuffled[1]


@pytest.mark.parametrize("n", [10**9, 2**31, 2**32 + 1, 2**33, 2**48])
def test_large_epochs_are_shuffled_over_their_whole_length(n):
    order = Order(n, 100_000, True, 7, False, 1)
    last = order.full_batches - 1
    index = [
        order.indices(tf.constant(1, tf.int64), tf.constant(step, tf.int64)).numpy()
        for step in (0, 1, last)
    ]
    index = np.concatenate(index)
    assert len(np.unique(index)) == 300_000
    assert index.min() >= 0
    assert index.max() < n
    # Chi-squared of 63 degrees of freedom, for the high and the low bits; and neighbours.
    for bins in ((index / n * 64).astype(int), index % 64):
        counts = np.bincount(bins, minlength=64)
        assert 30 < ((counts - len(index) / 64) ** 2 / (len(index) / 64)).sum() < 110
    assert abs(np.corrcoef(index[:-1], index[1:])[0, 1]) < 0.01


def test_five_examples_on_four_replicas_are_padded_too():
    # 2 + 2 + 1 + 0: more examples than replicas, but one replica has none.
    assert [n for n in range(1, 13) if leaves_a_replica_empty(n, 4)] == [1, 2, 3, 5, 6, 9]
    order = Order(13, 8, True, 0, False, 4)
    assert (order.last_batch_size, order.padded_last_batch_size) == (5, 8)
    assert Order(16, 8, True, 0, False, 4).padded_last_batch_size == 8
    assert Order(15, 8, True, 0, False, 4).padded_last_batch_size == 7


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_shards_of_any_batch_on_any_number_of_ranks_make_up_the_batch(shuffle, drop_remainder):
    epoch = tf.constant(2, tf.int64)
    for n, batch_size, size in itertools.product((1, 5, 7, 12), (1, 3, 4, 5), (1, 2, 3, 4)):
        if shuffle and batch_size < size:
            continue
        single, *orders = [
            Order(n, batch_size, shuffle, 5, drop_remainder, shard.size, shard)
            for shard in (Shard(), *(Shard(rank, size) for rank in range(size)))
        ]
        for step in range(single.num_batches):
            first = tf.constant(step, tf.int64)
            whole = single.indices(epoch, first).numpy().tolist()
            if shuffle:
                whole = [whole[i % len(whole)] for i in range(max(size, len(whole)))]
            shards = []
            for order in orders:
                assert order.num_batches == single.num_batches
                if step >= order.own_batches:
                    shards.append([])
                    continue
                shards.append(order.indices(epoch, first).numpy().tolist())
                for i, row in enumerate(order.indices_of_block(epoch, first, 2).numpy().tolist()):
                    assert row == order.indices(epoch, first + i).numpy().tolist()
            assert list(itertools.chain(*shards)) == whole
            lengths = [len(shard) for shard in shards]
            assert lengths == sorted(lengths, reverse=True)
            assert lengths[0] - lengths[-1] <= 1
            assert sum(order.share(step) for order in orders) == pytest.approx(size)


def test_a_batch_that_leaves_a_replica_of_a_rank_empty_is_padded():
    # 4 processes of 2 replicas: 9 examples are 3, 2, 2 and 2; but of 7 the last rank has 1.
    assert Order(9, 16, True, 0, False, 8, Shard(0, 4)).padded_last_batch_size == 9
    assert Order(7, 16, True, 0, False, 8, Shard(0, 4)).padded_last_batch_size == 8
