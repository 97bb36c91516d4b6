import tracemalloc

import numpy as np
import pytest

from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 23
X = np.arange(N, dtype=np.float32)[:, None]
Y = np.arange(N)


def test_a_batch_size_that_leaves_replicas_empty_is_refused_for_training():
    with pytest.raises(ConfigurationError, match=r"batch_size=6.*multiple of 4"):
        make_dataset((X, Y), 6, shuffle=True, num_replicas=4)
    with pytest.raises(ConfigurationError, match=r"batch_size=7.*8 replicas in 4 processes"):
        make_dataset((X, Y), 7, True, num_replicas=8, size=4)
    assert len(make_dataset((X, Y), 6, num_replicas=4)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 24, "drop_remainder": True}, "leaves no batch of 23"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"seed": None}, "seed=None"),
        ({"map": 3}, "map=3.*function"),
        ({"num_parallel_reads": 0}, "num_parallel_reads=0"),
        ({"num_parallel_reads": 2}, "num_parallel_reads=2.*in memory"),
        ({"shuffle_buffer": 5}, "shuffle_buffer=5.*tf.data.Dataset"),
        ({"num_replicas": 0}, "num_replicas=0"),
        ({"num_replicas": 3, "size": 2}, "num_replicas=3.*size=2"),
        ({"size": 0}, "size=0"),
        ({"rank": 1}, "rank=1.*0 to 0"),
        ({"rank": -1, "size": 2}, "rank=-1"),
        ({"source": None}, "NoneType"),
        ({"source": "train.npy"}, "a string names files with .tfrecord.gz, "),
        ({"source": iter([1, 2])}, "list_iterator"),
        ({"source": make_dataset((X, Y), 4)}, "batches already"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(**{"source": (X, Y), "batch_size": 4, **arguments})


class Numbers:
    """A source of any length."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("shuffle", [True, "blocks"])
@pytest.mark.parametrize("length", [10**9, 2**33])
def test_large_data_are_read_from_any_position(shuffle, length):
    dataset = make_dataset(Numbers(length), 256, shuffle, 3)
    before = tracemalloc_peak(lambda: None)
    batches = []

    def read():
        dataset.seek(5, length // 512)
        batches.extend(batch.numpy() for batch in dataset.take(3))

    assert tracemalloc_peak(read) - before < 8 << 20
    index = np.concatenate(batches)
    assert len(np.unique(index)) == 3 * 256
    assert (index.max() - index.min()) / length > 0.9


def tracemalloc_peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_examples_than_can_be_shuffled_are_refused():
    with pytest.raises(ConfigurationError, match=r"2\*\*48"):
        make_dataset(Numbers(2**48 + 1), 256)
