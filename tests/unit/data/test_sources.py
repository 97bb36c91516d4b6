import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.arrays import is_in_memory, is_on_disk
from distrib.data.make_dataset import make_dataset
from distrib.data.readers import DiskArraySource, RandomAccessSource
from distrib.data.sources import ArraySource, StreamSource, make_source
from distrib.errors import ConfigurationError

N = 11


def source_of(source, **kwargs):
    arguments = {"map": None, "num_parallel_reads": None, "shuffle_buffer": None, **kwargs}
    return make_source(source, **arguments)


# -- the choice of a source


def test_each_kind_of_source_is_recognized(tmp_path):
    x = np.zeros((N, 2))
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    assert isinstance(source_of(x), ArraySource)
    assert isinstance(source_of((x, {"a": tf.zeros(N), "b": [0] * N})), ArraySource)
    assert isinstance(source_of([0, 1]), ArraySource)
    assert isinstance(source_of(stored), DiskArraySource)
    assert isinstance(source_of((stored, {"y": x})), DiskArraySource)
    assert isinstance(source_of(range(N)), RandomAccessSource)
    assert isinstance(source_of(x, map=lambda row: row), RandomAccessSource)
    assert isinstance(source_of(["a.png", "b.png"], map=lambda path: path), RandomAccessSource)
    assert isinstance(source_of(tf.data.Dataset.range(N)), StreamSource)


def test_a_memmap_is_not_loaded(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (N, 2))
    assert is_on_disk(stored)
    assert not is_in_memory(stored)
    source = source_of({"x": stored})
    assert source._arrays[0] is stored
    stored[3] = 7
    (batch,) = make_dataset({"x": stored}, 100)
    assert batch["x"][3].numpy().tolist() == [7, 7]


# -- arrays


def test_dtypes_of_arrays_and_of_python_values():
    source = {
        "int": list(range(N)),
        "float": [0.5] * N,
        "bool": [True] * N,
        "text": ["é"] * N,
        "bytes": [b"a\0"] * N,
        "double": np.zeros(N),
        "half": tf.zeros(N, tf.bfloat16),
        "small": np.zeros(N, np.uint8),
    }
    (batch,) = make_dataset(source, 100)
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


def test_a_tuple_of_one_stays_a_tuple():
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
        (range(0), "no examples"),
    ],
)
def test_invalid_arrays_are_refused(source, message):
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(source, 2)


# -- ranks


def test_a_block_holds_only_the_rows_of_its_rank():
    # 1 MiB holds one global batch, or 4 of a rank's.
    x = np.zeros((64, 1 << 15), np.float32)
    x[:, 0] = np.arange(64)
    for size, batches in ((1, 1), (4, 4)):
        dataset = make_dataset(x, 8, True, 1, rank=size - 1, size=size)
        assert dataset._batches._source._batches_per_block(dataset._batches._order) == batches


@pytest.mark.parametrize("structure", [lambda i: i, lambda i: {"a": (i, i)}, lambda i: ((i,), i)])
def test_streams_of_any_structure_are_split_among_ranks(structure):
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


# -- random access


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
        (tf.data.Dataset.range(9).batch(4).map(lambda i: i + 1).prefetch(1), {}, "of batches"),
        (tf.data.Dataset.range(9).padded_batch(4), {}, "of batches"),
    ],
)
def test_streams_without_a_known_length_or_dense_tensors_are_refused(stream, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(stream, 4, **arguments)


def test_a_stream_of_windows_has_windows_as_examples() -> None:
    windows = tf.data.Dataset.range(12).batch(3, drop_remainder=True)
    assert next(iter(make_dataset(windows, batch_size=2))).shape == (2, 3)


def test_a_stream_of_asserted_length():
    odd = tf.data.Dataset.range(20).filter(lambda i: i % 2 == 1)
    dataset = make_dataset(odd.apply(tf.data.experimental.assert_cardinality(10)), 4, True)
    assert sorted(np.concatenate(list(dataset))) == list(range(1, 20, 2))


def test_a_small_buffer_shuffles_among_few_examples():
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
