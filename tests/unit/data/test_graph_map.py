import gc

import numpy as np
import pytest
import tensorflow as tf

from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 11


class Records:
    """Random access to serialized records; `damaged` ones cannot be parsed."""

    def __init__(self, damaged=(), length=N):
        self.damaged, self.length = damaged, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.damaged:
            return b"\xff"
        return tf.io.serialize_tensor(tf.range(index, index + 3.0)).numpy()


def parse(record):
    row = tf.io.parse_tensor(record, tf.float32)
    if row[0] > 5.0:  # For AutoGraph.
        row = row + 0.25
    return {"row": tf.ensure_shape(row, [3]), "text": record, "list": [row[0], row[1]]}


def flat(dataset):
    return [
        {key: tensor.numpy().tolist() for key, tensor in batch.items()} for batch in iter(dataset)
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 4},
        {"batch_size": 4, "shuffle": True, "seed": 3},
        {"batch_size": 4, "shuffle": "blocks", "seed": 3},
        {"batch_size": 4, "drop_remainder": True},
        # The last batch is padded to 4 examples.
        {"batch_size": 8, "shuffle": True, "num_replicas": 4},
        *({"batch_size": 5, "shuffle": True, "rank": rank, "size": 2} for rank in range(2)),
    ],
    ids=str,
)
def test_a_tf_function_gives_the_batches_of_the_python_function(arguments):
    expected = make_dataset(Records(), map=parse, **arguments)
    dataset = make_dataset(Records(), map=tf.function(parse), **arguments)
    assert dataset.element_spec == expected.element_spec
    assert dataset.fingerprint() == expected.fingerprint()
    for _ in range(2):
        assert flat(dataset) == flat(expected)
    dataset.seek(1, 1)
    expected.seek(1, 1)
    assert flat(dataset.repeat().take(5)) == flat(expected.repeat().take(5))


def test_it_is_traced_once():
    map = tf.function(parse)
    dataset = make_dataset(Records(), 4, shuffle=True, map=map)
    for _ in range(3):
        flat(dataset)
    flat(dataset.repeat().take(5))
    assert map.experimental_get_tracing_count() == 1


def test_a_concrete_function_and_a_method_will_do():
    class Parser:
        @tf.function
        def __call__(self, record):
            return parse(record)["row"]

    expected = [batch["row"].numpy().tolist() for batch in make_dataset(Records(), 4, map=parse)]
    concrete = tf.function(lambda record: parse(record)["row"]).get_concrete_function(
        tf.TensorSpec([], tf.string)
    )
    for map in (concrete, Parser().__call__):
        dataset = make_dataset(Records(), 4, map=map)
        gc.collect()
        assert [batch.numpy().tolist() for batch in dataset] == expected


def test_rows_of_arrays_and_names_with_labels():
    x, y = np.arange(3.0 * N).reshape(N, 3), np.arange(N)
    names = [f"{i}" for i in range(N)]

    def rows(example):
        return example["x"] * 2, example["y"]

    def label(example):
        name, label = example
        return tf.strings.to_number(name) + tf.cast(label, tf.float32)

    for source, map in (({"x": x, "y": y}, rows), ((names, y), label)):
        expected = list(make_dataset(source, 4, map=map))
        for batch, same in zip(
            make_dataset(source, 4, map=tf.function(map)), expected, strict=True
        ):
            tf.nest.map_structure(np.testing.assert_array_equal, batch, same)


def test_items_of_different_shapes():
    class Ragged:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return np.arange(index + 1)

    map = tf.function(tf.reduce_sum)
    (batch,) = make_dataset(Ragged(), 40, map=map)
    assert batch.numpy().tolist() == [sum(range(i + 1)) for i in range(40)]


def test_an_example_that_fails_is_named():
    batches = iter(make_dataset(Records(damaged=[6]), 4, map=tf.function(parse)))
    assert next(batches)["row"].numpy()[3].tolist() == [3, 4, 5]
    with pytest.raises(tf.errors.OpError, match="Example 6 could not be read: Inv"):
        next(batches)


def test_an_item_that_cannot_be_fetched_is_named():
    class Broken(Records):
        def __getitem__(self, index):
            if index == 6:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    batches = iter(make_dataset(Broken(), 4, map=tf.function(parse)))
    next(batches)
    with pytest.raises(tf.errors.OpError, match="Example 6 could not be read: OSError"):
        next(batches)


def test_an_example_of_another_shape_is_named():
    map = tf.function(lambda record: tf.repeat(record, 2 if record == b"6" else 1))
    batches = iter(make_dataset([f"{i}" for i in range(N)], 4, map=map))
    next(batches)
    with pytest.raises(tf.errors.OpError, match=r"Example 6 has shape \(2,\), but example 0 has"):
        next(batches)


def test_a_tf_function_with_rng_is_refused():
    with pytest.raises(ConfigurationError, match="`rng`, but is a tf"):
        make_dataset(Records(), 4, map=tf.function(lambda record, rng: record))
