import gc
import itertools
import threading
import time
import weakref

import h5py
import numpy as np
import pytest
import tensorflow as tf

from distrib.data import block_reader
from distrib.data.block_order import BlockOrder
from distrib.data.block_reader import BlockPasses
from distrib.data.make_dataset import make_dataset
from distrib.data.order import Blocks, Order
from distrib.errors import ConfigurationError

N = 2000


class Records:
    """Items that are cheap to read in blocks of 4, and a record of the reads."""

    block_size = 4

    def __init__(self, length=N, broken=(), delay=0.0):
        self.length, self.broken, self.delay = length, broken, delay
        self.lock, self.blocks, self.singles = threading.Lock(), [], []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.singles.append(index)
        return self._item(index)

    def __getitems__(self, indices):
        assert type(indices) is list
        with self.lock:
            self.blocks.append(indices[0] // self.block_size)
        time.sleep(self.delay)
        return [self._item(index) for index in indices]

    def _item(self, index):
        if index in self.broken:
            raise OSError(f"cannot read record {index}")
        return np.full(1000, index)


def first(value):
    return value[0]


def rows(dataset):
    return [batch.numpy().tolist() for batch in dataset]


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("distrib-blocks")]


def new(source, batch_size=32, **kwargs):
    return make_dataset(source, batch_size, "blocks", 3, map=first, **kwargs)


def test_a_pass_reads_every_block_once_and_leaves_nothing_behind():
    source = Records()
    dataset = new(source)
    source.blocks.clear()
    epochs = [rows(dataset), rows(dataset)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(N))
    assert epochs[0] != epochs[1]
    assert 1000 <= len(source.blocks) <= 1000 + 2 * 18
    assert {*source.singles} == {0}
    assert not reading_threads()


def things_held(*roots):
    """Return how many things containers hold that the roots reach within the module."""
    found, total, seen = list(roots), 0, set()
    while found:
        one = found.pop()
        is_container = isinstance(one, dict | list | set | tuple)
        if id(one) in seen or not (is_container or type(one).__module__ == block_reader.__name__):
            continue
        seen.add(id(one))
        total += len(one) if is_container else 0
        found += gc.get_referents(one)
    return total


def test_a_long_epoch_takes_no_memory_for_batches_that_are_done():
    order = Order(9000, 2, True, 0, False, 1, blocks=Blocks(4, 8))
    passes = BlockPasses(BlockOrder(order), lambda start, stop: None, 1)
    plan = passes.plan(0, 0)
    held = []
    for _ in range(2):
        for number in itertools.islice(plan, 2000):
            passes.take(number)
        held.append(things_held(passes, *plan.gi_frame.f_locals.values()))
    assert held[0] > 20
    assert held[1] < held[0] + 1000
    plan.close()


def test_ranks_read_their_own_blocks_only():
    whole = rows(new(Records()))
    shards = []
    for rank in range(4):
        source = Records()
        dataset = new(source, rank=rank, size=4)
        source.blocks.clear()
        shards.append(rows(dataset))
        assert len(source.blocks) <= 125 + 8
    assert [list(itertools.chain(*parts)) for parts in zip(*shards, strict=True)] == whole


def test_a_seek_reads_the_blocks_of_the_windows_there_only():
    source = Records()
    dataset = new(source)
    whole = rows(dataset)
    dataset.seek(0, 55)
    source.blocks.clear()
    assert rows(dataset) == whole[55:]
    assert len(source.blocks) < 250


@pytest.mark.parametrize("readers", [1, 4])
def test_few_blocks_are_read_ahead_and_an_abandoned_pass_leaves_nothing_behind(readers):
    source = Records(20_000, delay=0.001)
    dataset = new(source, num_parallel_reads=readers)
    source.blocks.clear()
    batches = iter(dataset)
    next(batches)
    time.sleep(0.3)
    # A window of 128 blocks, a quarter of it ahead; and some batches are prefetched.
    assert len(source.blocks) <= 128 + 32 + 16
    del batches
    gc.collect()
    for thread in reading_threads():
        thread.join(30)
        assert not thread.is_alive()
    assert not any("BlockBatch" in type(thing).__name__ for thing in gc.get_objects())


def test_an_abandoned_pass_fetches_nothing_more():
    source = Records(20_000, delay=0.01)
    dataset = new(source, num_parallel_reads=2)
    batches = iter(dataset)
    next(batches)
    del batches
    gc.collect()
    count = len(source.blocks)
    time.sleep(0.2)
    assert len(source.blocks) <= count + 2


def test_blocks_are_dropped_after_their_last_use():
    live, most = 0, 0

    def drop():
        nonlocal live
        live -= 1

    class Counted(Records):
        def _item(self, index):
            nonlocal live, most
            item = super()._item(index)
            weakref.finalize(item, drop)
            live += 1
            most = max(most, live)
            return item

    batches = rows(new(Counted(10_000), num_parallel_reads=1))
    assert sorted(itertools.chain(*batches)) == list(range(10_000))
    # The window, what the lanes' windows share and what is read ahead, in blocks of 4 examples.
    assert most < 4 * (128 + 32 + 32)
    assert live == 0


def test_an_error_comes_out_at_the_example_that_has_it():
    good = new(Records())
    whole = rows(good)
    broken = whole[40][7]
    read = []
    dataset = new(Records(broken=(broken,)), num_parallel_reads=1)
    with pytest.raises(tf.errors.OpError, match=f"Example {broken} could not be read: OSError"):
        read.extend(batch.numpy().tolist() for batch in dataset)
    assert read == whole[: len(read)]
    # Batches are prepared ahead of use, so TensorFlow may report the error some batches early.
    assert 30 <= len(read) <= 40


def test_an_endless_dataset_goes_on_with_the_next_epoch():
    dataset = new(Records(100), 40)
    epochs = rows(dataset) + rows(dataset)
    dataset.seek(0, 1)
    assert rows(dataset.repeat().take(5)) == epochs[1:6]


def test_arrays_on_disk_are_read_in_slices(tmp_path):
    x = np.arange(2 * N).reshape(N, 2)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", data=x)
        dataset = make_dataset((stored, {"m": mapped}), 64, "blocks", 1)
        passes = [list(dataset), list(dataset)]
        same = list(make_dataset((mapped, x[:, 0]), 64, "blocks", 1))
        items = list(make_dataset((mapped, x), 64, "blocks", 1, map=lambda row: row[0]))
    for batches in passes:
        read = np.concatenate([a for a, _ in batches])
        assert sorted(read[:, 0].tolist()) == x[:, 0].tolist()
        for a, b in batches:
            np.testing.assert_array_equal(a, b["m"])
    for (a, _), (b, number), item in zip(passes[0], same, items, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, item)
        np.testing.assert_array_equal(a[:, 0], number)


def test_an_error_of_arrays_on_disk_names_an_example():
    class Stored:
        shape, dtype = (N, 1), np.dtype(np.float32)

        def __len__(self):
            return N

        def __getitem__(self, index):
            if isinstance(index, slice) and index.stop > 1000:
                raise OSError("the disk is gone")
            return np.zeros((len(range(N)[index]) if isinstance(index, slice) else len(index), 1))

    with pytest.raises(tf.errors.OpError, match="could not be read: OSError: the disk"):
        list(make_dataset(Stored(), 64, "blocks"))


def test_data_in_memory_and_streams_are_shuffled_as_ever():
    x = np.arange(50)
    for source in (x, tf.data.Dataset.range(50)):
        dataset = make_dataset(source, 8, "blocks", 3)
        assert rows(dataset) == rows(make_dataset(source, 8, True, 3))
        assert dataset.fingerprint() == make_dataset(source, 8, True, 3).fingerprint()
    assert rows(make_dataset(x, 8, "blocks", map=int)) == rows(make_dataset(x, 8, True, map=int))


def test_the_fingerprint_has_the_sizes_of_blocks_only_if_blocks_are_shuffled():
    print_ = new(Records()).fingerprint()
    assert print_.pop("blocks") == [4, 128]
    assert print_ == make_dataset(Records(), 32, True, 3, map=first).fingerprint()


def test_sizes_of_blocks():
    def sizes(source):
        return make_dataset(source, 32, "blocks").fingerprint()["blocks"]

    class Images:
        def __len__(self):
            return 10_000

        def __getitem__(self, index):
            return b"\0" * self.size

    large = Images()
    large.size = 1 << 20
    assert sizes(large) == [2, 128]
    large.size = 100
    assert sizes(large) == [16, 128]
    # Blocks of 100 MiB: fewer of them, so that memory stays bounded.
    large.size, large.block_size = 1 << 20, 100
    assert sizes(large) == [100, 4]
    large.block_size = 1000
    assert sizes(large) == [1000, 4]


def test_other_strings_are_refused():
    with pytest.raises(ConfigurationError, match="`shuffle='block'` is neither"):
        make_dataset(np.arange(3), 2, "block")


def test_getitems_reads_the_batches_of_a_global_shuffle_too():
    source = Records()
    dataset = make_dataset(source, 32, True, 3, map=first)
    source.singles.clear()
    expected = make_dataset(np.arange(N), 32, True, 3)
    assert rows(dataset) == rows(expected)
    assert not source.singles
    broken = rows(make_dataset(np.arange(N), 32, True, 3))[0][5]
    with pytest.raises(tf.errors.OpError, match=f"Example {broken} could not be read: OSError"):
        rows(make_dataset(Records(broken=(broken,)), 32, True, 3, map=first))


def test_a_getitems_that_fails_is_named_once_and_done_without(caplog):
    class Columns(Records):
        def __getitems__(self, indices):
            return {"x": [self._item(index) for index in indices]}

    for shuffle in (True, "blocks"):
        caplog.clear()
        dataset = make_dataset(Columns(100), 32, shuffle, 3, map=first, num_parallel_reads=1)
        assert rows(dataset) == rows(make_dataset(Records(100), 32, shuffle, 3, map=first))
        assert (
            caplog.text.count(
                "`__getitems__` of Columns failed: ValueError: a dict of 1 instead of"
            )
            == 1
        )
