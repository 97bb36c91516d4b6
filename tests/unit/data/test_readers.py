import gc
import threading
import time
import weakref

import h5py
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 11


def only_batch(source, **kwargs):
    (batch,) = make_dataset(source, 100, **kwargs)
    return batch


class Items:
    """Random access to the results of a function."""

    def __init__(self, function, length=N):
        self.function, self.length = function, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert type(index) is int
        return self.function(index)


def test_dtypes_of_items():
    def item(i):
        return {
            "i": i,
            "f": 0.5,
            "b": True,
            "s": "é",
            "l": [1.0, 2.0],
            "n": np.float64(1),
            "z": b"\0",
        }

    batch = only_batch(Items(item))
    assert {key: (tensor.dtype.name, tensor.shape[1:]) for key, tensor in batch.items()} == {
        "i": ("int64", ()),
        "f": ("float32", ()),
        "b": ("bool", ()),
        "s": ("string", ()),
        "l": ("float32", (2,)),
        "n": ("float64", ()),
        "z": ("string", ()),
    }
    assert batch["z"][3].numpy() == b"\0"
    assert batch["s"][3].numpy().decode() == "é"


@pytest.mark.parametrize("readers", [1, 4])
def test_a_rank_reads_its_own_examples_only(readers):
    read = []

    def item(i):
        read.append(i)
        return i

    for rank in range(3):
        dataset = make_dataset(
            Items(item), 4, True, 2, num_parallel_reads=readers, rank=rank, size=3
        )
        read.clear()
        seen = np.concatenate(list(dataset)).tolist()
        assert sorted(read) == sorted(seen)
        assert len(read) == (5, 3, 3)[rank]


def test_a_rank_reads_its_own_rows_of_arrays_on_disk_only():
    class Stored:
        shape, dtype, read = (N,), np.dtype(np.int64), []

        def __len__(self):
            return N

        def __getitem__(self, index):
            self.read.extend(index.tolist())
            return index

    dataset = make_dataset(Stored(), 4, rank=2, size=3)
    Stored.read.clear()
    assert [batch.numpy().tolist() for batch in dataset] == [[3], [7], [10]]
    assert sorted(Stored.read) == [3, 7, 10]


def test_hdf5_is_read_in_the_order_of_the_epoch(tmp_path):
    x = np.arange(2 * N, dtype=np.int16).reshape(N, 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", data=x)
        # Padding repeats rows in one batch, which HDF5 does not support by itself.
        ours = make_dataset((stored, x), 8, shuffle=True, seed=1, num_replicas=4)
        same = make_dataset((x, x), 8, shuffle=True, seed=1, num_replicas=4)
        for (a, b), (c, _) in zip(ours, same, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


class SlowArray:
    """An array on slow storage that records how many batches are read in parallel."""

    shape, dtype = (64, 2), np.dtype(np.float32)

    def __init__(self):
        self.lock, self.current, self.most = threading.Lock(), 0, 0

    def __len__(self):
        return 64

    def __getitem__(self, index):
        with self.lock:
            self.current += 1
            self.most = max(self.most, self.current)
        time.sleep(0.02 + 0.01 * (index[0] % 3))
        with self.lock:
            self.current -= 1
        return np.repeat(index[:, None], 2, 1).astype(np.float32)


def test_batches_of_arrays_on_disk_are_read_in_parallel_and_stay_in_order():
    slow = SlowArray()
    batches = list(make_dataset(slow, 4, num_parallel_reads=6))
    assert np.concatenate(batches)[:, 0].tolist() == list(range(64))
    # Possibly more than this machine's CPUs: the reads wait and do not compute.
    assert slow.most == 6


def test_parallel_reads_keep_the_order():
    def item(i):
        time.sleep(0.003 * (i * 7 % 5))
        return i

    expected = list(make_dataset(np.arange(40), 8, shuffle=True, seed=2))
    batches = list(make_dataset(Items(item, 40), 8, shuffle=True, seed=2, num_parallel_reads=8))
    np.testing.assert_array_equal(np.stack(batches), np.stack(expected))


@pytest.mark.parametrize("readers", [1, 4])
def test_num_parallel_reads_limits_the_examples_read_in_parallel(readers):
    lock, counts = threading.Lock(), {"current": 0, "most": 0}

    def item(i):
        with lock:
            counts["current"] += 1
            counts["most"] = max(counts.values())
        time.sleep(0.01)
        with lock:
            counts["current"] -= 1
        return i

    list(make_dataset(Items(item, 24), 8, num_parallel_reads=readers))
    assert counts["most"] == readers


def test_map_turns_items_into_examples():
    items = Items(lambda i: {"image": np.full(3, i), "label": i})
    dataset = make_dataset(items, 4, map=lambda item: (item["image"], item["label"]))
    assert [spec.shape.as_list() for spec in dataset.element_spec] == [[None, 3], [None]]
    assert next(iter(dataset))[0].numpy().tolist() == [[i] * 3 for i in range(4)]


def test_map_over_arrays_and_lists_gets_single_examples():
    seen = []

    def load(example):
        path, label = example
        seen.append((type(path), np.shape(label)))
        return len(path), label

    x, _ = only_batch((["a", "bb"], np.zeros((2, 3))), map=load)
    assert x.numpy().tolist() == [1, 2]
    assert set(seen) == {(str, (3,))}
    assert only_batch(["a", "bb"], map=len).numpy().tolist() == [1, 2]
    with pytest.raises(ConfigurationError, match="first dimension"):
        make_dataset((["a", "bb"], np.zeros(3)), 2, map=load)


def augment(example, rng):
    return example, rng.integers(2**62)


def test_rng_depends_on_seed_epoch_and_index_only():
    def numbers(batches):
        return {int(i): int(r) for batch in batches for i, r in zip(*batch, strict=True)}

    def new(seed=3, **kwargs):
        return make_dataset(np.arange(N), 4, True, seed, map=augment, **kwargs)

    dataset = new()
    first, second = numbers(dataset), numbers(dataset)
    assert len({*first.values(), *second.values()}) == 2 * N
    resumed = new(num_parallel_reads=1)
    resumed.seek(1, 2)
    rest = numbers(resumed)
    assert len(rest) == 3
    assert rest.items() <= second.items()
    other_batches = make_dataset(np.arange(N), 5, False, 3, map=augment)
    assert numbers(other_batches) == first
    ranks = [numbers(new(rank=rank, size=3)) for rank in range(3)]
    assert ranks[0] | ranks[1] | ranks[2] == first
    assert numbers(new(seed=4)) != first
    assert numbers(new(seed=3 + 2**32)) != first


def test_map_may_be_a_builtin_function():
    assert only_batch(np.arange(3.0), map=float).dtype == tf.float32


@pytest.mark.parametrize("error", [KeyError("gone"), StopIteration(), MemoryError("all")])
def test_an_error_of_the_users_code_names_the_example_and_the_line(error):
    def broken_reader(i):
        if i == 7:
            raise error
        return i

    with pytest.raises(tf.errors.OpError) as caught:
        list(make_dataset(Items(broken_reader), 4))
    text = str(caught.value)
    assert f"Example 7 could not be read: {type(error).__name__}" in text
    assert "in broken_reader" in text
    assert "raise error" in text


def test_an_error_of_example_0_is_raised_at_once():
    def broken(example):
        raise KeyError("gone")

    with pytest.raises(ConfigurationError, match=r"source\[0\].*KeyError: 'gone'") as caught:
        make_dataset(np.arange(3), 2, map=broken)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: {"x": np.zeros(3 if i < 7 else 2)}, r"Example 7 has shape \(2,\) at \['x'\].*\(3,\).*pad or crop"),  # noqa: E501
        (lambda i: np.zeros(()) if i < 7 else 1, r"Example 7 has dtype int64.*float64"),
        (lambda i: {"x": 1} if i < 7 else {"y": 1}, r"Example 7 has the parts.*'y'.*'x'"),
        (lambda i: 1 if i < 7 else None, "Example 7 could not be read.*NoneType"),
    ],
)  # fmt: skip
def test_an_example_unlike_the_first_is_named(item, message):
    with pytest.raises(tf.errors.OpError, match=message):
        list(make_dataset(Items(item), 4))


@pytest.mark.parametrize(("shuffle", "in_graph"), [(True, False), ("blocks", False), (True, True)])
def test_a_source_is_freed_with_its_dataset_and_iterators(shuffle, in_graph):
    # A `tf.function` that lives on would keep the graphs that it was called in.
    function = tf.function(lambda i: i) if in_graph else None
    source = Items(lambda i: i)
    freed = weakref.ref(source)
    iterator = iter(make_dataset(source, 4, shuffle, map=function).map(lambda i: i))
    del source
    gc.collect()
    assert len(list(iterator)) == 3
    del iterator, function
    gc.collect()
    assert freed() is None
