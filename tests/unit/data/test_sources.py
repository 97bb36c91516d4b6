import threading
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.arrays import is_in_memory, is_stored
from distrib.data.dataset import make_dataset
from distrib.data.readers import ExampleSource, StoredArraySource
from distrib.data.sources import ArraySource, StreamSource, make_source
from distrib.errors import ConfigurationError

N = 11


def choose(source, **kwargs):
    arguments = {"map": None, "num_parallel_reads": None, "shuffle_buffer": None, **kwargs}
    return make_source(source, **arguments)


def only_batch(source, **kwargs):
    (batch,) = make_dataset(source, 100, **kwargs)
    return batch


class Items:
    """Random access over what a function says."""

    def __init__(self, function, length=N):
        self.function, self.length = function, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert type(index) is int
        return self.function(index)


# -- which source


def test_each_kind_of_source_is_recognised(tmp_path):
    x = np.zeros((N, 2))
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    assert isinstance(choose(x), ArraySource)
    assert isinstance(choose((x, {"a": tf.zeros(N), "b": [0] * N})), ArraySource)
    assert isinstance(choose([0, 1]), ArraySource)
    assert isinstance(choose(stored), StoredArraySource)
    assert isinstance(choose((stored, {"y": x})), StoredArraySource)
    assert isinstance(choose(Items(lambda i: i)), ExampleSource)
    assert isinstance(choose(x, map=lambda row: row), ExampleSource)
    assert isinstance(choose(["a.png", "b.png"], map=lambda path: path), ExampleSource)
    assert isinstance(choose(tf.data.Dataset.range(N)), StreamSource)


def test_a_memmap_is_not_loaded(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (N, 2))
    assert is_stored(stored)
    assert not is_in_memory(stored)
    source = choose({"x": stored})
    assert source._arrays[0] is stored
    stored[3] = 7
    assert only_batch({"x": stored})["x"][3].numpy().tolist() == [7, 7]


# -- arrays


def test_dtypes_of_arrays_and_of_python_values():
    batch = only_batch(
        {
            "int": list(range(N)),
            "float": [0.5] * N,
            "bool": [True] * N,
            "text": ["é"] * N,
            "bytes": [b"a\0"] * N,
            "double": np.zeros(N),
            "half": tf.zeros(N, tf.bfloat16),
            "small": np.zeros(N, np.uint8),
        }
    )
    assert {key: tensor.dtype.name for key, tensor in batch.items()} == {
        "int": "int64",
        "float": "float32",
        "bool": "bool",
        "text": "string",
        "bytes": "string",
        "double": "float64",
        "half": "bfloat16",
        "small": "uint8",
    }
    assert batch["text"][0].numpy().decode() == "é"
    assert batch["bytes"][0].numpy() == b"a\0"


def test_items_have_the_same_dtypes():
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


def test_a_one_tuple_stays_one():
    for source in ((np.arange(N),), tf.data.Dataset.from_tensor_slices((np.arange(N),))):
        for job in ({"num_replicas": 4}, {"rank": 1, "size": 2}):
            for batch in make_dataset(source, 8, shuffle=True, **job):
                assert isinstance(batch, tuple)
                assert len(batch) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((np.zeros((5, 2)), np.zeros(4)), r"\(5, 2\) at \[0\], \(4,\) at \[1\]"),
        (([np.zeros(4), np.zeros(4)], np.zeros(4)), "A list is one array"),
        ((np.zeros(()),), "same first dimension"),
        (np.zeros((0, 3)), "no examples"),
        ((), "nothing"),
        ({"x": np.array(["2020-01-01"], "datetime64[D]")}, r"at \['x'\] cannot become a tensor"),
        ([{"x": 1}, {"x": 2}], "holds a dict, not numbers or strings"),
        ([[1, 2], [3]], "cannot become a tensor"),
        ((np.zeros(3), None), r"NoneType at \[1\]"),
        ((tf.ragged.constant([[1], [2, 3]]), np.zeros(2)), "to_tensor"),
        (Items(lambda i: i, 0), "no examples"),
    ],
)
def test_arrays_that_cannot_be_a_data_set(source, message):
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(source, 2)


# -- ranks


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


def test_blocks_of_a_rank_are_of_its_own_rows():
    # 1 MiB holds one global batch, or 4 of a rank's.
    x = np.zeros((64, 1 << 15), np.float32)
    x[:, 0] = np.arange(64)
    for size, batches in ((1, 1), (4, 4)):
        dataset = make_dataset(x, 8, True, 1, rank=size - 1, size=size)
        assert dataset._source._batches_of_a_block(dataset._order) == batches


@pytest.mark.parametrize("structure", [lambda i: i, lambda i: {"a": (i, i)}, lambda i: ((i,), i)])
def test_streams_of_any_structure_are_cut(structure):
    stream = tf.data.Dataset.range(N).map(structure)
    parts = [list(make_dataset(stream, 4, rank=rank, size=2)) for rank in range(2)]
    whole = list(make_dataset(stream, 4))
    for first, second, both in zip(*parts, whole, strict=True):
        tf.nest.map_structure(
            lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b]), c),
            first,
            second,
            both,
        )


# -- arrays on disk


def test_hdf5_is_read_in_the_order_of_the_epoch(tmp_path):
    x = np.arange(2 * N, dtype=np.int16).reshape(N, 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", data=x)
        # Topping up asks for the same rows twice, which HDF5 does not do by itself.
        ours = make_dataset((stored, x), 8, shuffle=True, seed=1, num_replicas=4)
        same = make_dataset((x, x), 8, shuffle=True, seed=1, num_replicas=4)
        for (a, b), (c, _) in zip(ours, same, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


class SlowArray:
    """An array on slow storage that watches how many batches are read at once."""

    shape, dtype = (64, 2), np.dtype(np.float32)

    def __init__(self):
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __len__(self):
        return 64

    def __getitem__(self, index):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02 + 0.01 * (index[0] % 3))
        with self.lock:
            self.now -= 1
        return np.repeat(index[:, None], 2, 1).astype(np.float32)


def test_batches_of_arrays_on_disk_are_read_side_by_side_and_stay_in_order():
    slow = SlowArray()
    batches = list(make_dataset(slow, 4, num_parallel_reads=6))
    assert np.concatenate(batches)[:, 0].tolist() == list(range(64))
    # More than this machine may have processors: they wait, they do not compute.
    assert slow.most == 6


# -- random access


def test_parallel_reads_keep_the_order():
    def item(i):
        time.sleep(0.003 * (i * 7 % 5))
        return i

    expected = list(make_dataset(np.arange(40), 8, shuffle=True, seed=2))
    batches = list(make_dataset(Items(item, 40), 8, shuffle=True, seed=2, num_parallel_reads=8))
    np.testing.assert_array_equal(np.stack(batches), np.stack(expected))


@pytest.mark.parametrize("readers", [1, 4])
def test_examples_are_read_side_by_side_as_often_as_asked(readers):
    lock, counts = threading.Lock(), {"now": 0, "most": 0}

    def item(i):
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts.values())
        time.sleep(0.01)
        with lock:
            counts["now"] -= 1
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


def test_builtin_functions_as_map():
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


def test_an_error_of_example_0_is_found_at_once():
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


def test_a_pydataset_is_refused():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.zeros((4, 1)), np.zeros(4)

    with pytest.raises(ConfigurationError, match="items are batches"):
        make_dataset(Batches(), 4)


# -- streams


@pytest.mark.parametrize(
    ("stream", "arguments", "message"),
    [
        (tf.data.Dataset.range(9).filter(lambda i: i > 2), {}, r"unknown length.*assert_cardinal"),
        (tf.data.Dataset.range(9).repeat(), {}, r"without end.*take\(n\)"),
        (tf.data.Dataset.range(0), {}, "without examples"),
        (tf.data.Dataset.range(9), {"map": lambda i: i}, r"source.map"),
        (tf.data.Dataset.range(9), {"num_parallel_reads": 2}, "num_parallel_reads=2"),
        (
            tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]])),
            {},
            "RaggedTensorSpec",
        ),
    ],
)
def test_streams_that_are_refused(stream, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(stream, 4, **arguments)


def test_a_stream_of_asserted_length():
    odd = tf.data.Dataset.range(20).filter(lambda i: i % 2 == 1)
    dataset = make_dataset(odd.apply(tf.data.experimental.assert_cardinality(10)), 4, True)
    assert sorted(np.concatenate(list(dataset))) == list(range(1, 20, 2))


def test_a_small_buffer_shuffles_a_little():
    def first(buffer):
        return next(iter(make_dataset(tf.data.Dataset.range(100), 1, True, shuffle_buffer=buffer)))

    assert first(3)[0] < 3
    assert first(1)[0] == 0


def test_a_stream_from_a_generator():
    def examples():
        yield from range(N)

    stream = tf.data.Dataset.from_generator(
        examples, output_signature=tf.TensorSpec([], tf.int64)
    ).apply(tf.data.experimental.assert_cardinality(N))
    dataset = make_dataset(stream, 4, True, seed=1)
    whole = [batch.numpy().tolist() for batch in dataset]
    dataset.seek(0, 1)
    assert [batch.numpy().tolist() for batch in dataset] == whole[1:]
