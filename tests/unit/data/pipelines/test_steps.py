"""Which step of a `tf.data` pipeline is to blame for what."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.pipelines.steps import (
    buffered_bytes,
    is_sharded,
    reshuffling,
    sizes,
    steps_of,
    unsavable,
    unseeded_shuffles,
    without_repeat,
)

Data = tf.data.Dataset


def augment(x: Any) -> Any:
    return x + tf.random.uniform([])


def numbers() -> Any:
    return Data.range(20)


def mixed(cached: bool) -> Any:
    shuffled = numbers().shuffle(4, seed=1)
    return shuffled.cache() if cached else shuffled.concatenate(numbers())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: numbers().map(lambda x: tf.random.uniform([])), "RandomUniform"),
        (lambda: Data.from_tensor_slices([1.0]).map(augment), "`map (augment)` has a state"),
        (lambda: numbers().map(lambda x: tf.numpy_function(abs, [x], tf.int64)), "`map` runs Py"),
        (
            lambda: Data.from_generator(
                lambda: iter("ab"), output_signature=tf.TensorSpec([], tf.string)
            ),
            "`from_generator` runs Python",
        ),
        (lambda: mixed(cached=True), "`cache` keeps the order"),
        (lambda: mixed(cached=False), "`concatenate` joins"),
    ],
)
def test_what_cannot_be_saved_is_named(make: Callable[[], Any], reason: str) -> None:
    (found,) = unsavable(steps_of(make().batch(2).prefetch(1)))
    assert reason in found


def test_variables_tables_and_sources_can_be_saved() -> None:
    normalization = keras.layers.Normalization()
    normalization.adapt(np.ones((3, 2)))
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2]), 0)
    for pipeline in (
        Data.from_tensor_slices(np.ones((4, 2), "float32")).batch(2).map(normalization),
        Data.from_tensor_slices([1, 2]).map(table.lookup),
        Data.list_files(__file__, shuffle=False)
        .interleave(tf.data.TFRecordDataset)
        .cache()
        .shuffle(3),
    ):
        assert unsavable(steps_of(pipeline)) == []


def test_seeds_and_shards() -> None:
    tf.random.set_seed(None)
    assert unseeded_shuffles(steps_of(numbers().shuffle(3))) == ["shuffle"]
    assert unseeded_shuffles(steps_of(numbers().shuffle(3, seed=1).batch(2))) == []
    assert reshuffling(steps_of(numbers().shuffle(3).batch(2).shuffle(2))) == 2
    assert is_sharded(steps_of(numbers().shard(2, 1).map(abs)))
    assert not is_sharded(steps_of(numbers()))


def test_sizes_of_batches_and_sources() -> None:
    files = tf.data.Dataset.from_tensor_slices(["a", "b"])
    records = files.interleave(tf.data.TFRecordDataset).repeat(2).batch(4).prefetch(1)
    assert sizes(steps_of(records)) == ["tensor_slice: 2 elements", "batch: 4"]


def test_size_of_buffers() -> None:
    images = Data.from_tensor_slices(np.zeros((10, 8, 8), "float32"))
    steps = steps_of(images.cache().shuffle(4).shuffle(100).batch(2))
    assert [buffered_bytes(step) for step in steps] == [0, 2560, 1024, 2560, 0]
    assert not any(map(buffered_bytes, steps_of(Data.list_files(__file__, shuffle=True))))


def test_an_endless_repeat_at_the_end_is_taken_off() -> None:
    pipeline, repeats = without_repeat(numbers().batch(2).repeat().prefetch(3))
    assert repeats
    assert [step.kind for step in steps_of(pipeline)] == ["range", "batch", "prefetch"]
    for other in (numbers().repeat().batch(2), numbers().repeat(3)):
        assert without_repeat(other) == (other, False)
