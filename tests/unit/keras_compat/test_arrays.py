"""These fail when a Keras release changes what `keras_compat/arrays.py` relies on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from distrib.keras_compat import arrays

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10) % 2


def test_what_keras_takes_for_arrays() -> None:
    assert arrays.are_arrays(X, Y, None)
    assert arrays.are_arrays({"a": tf.constant(X), "b": [pd.DataFrame(X)]}, None, None)
    assert not arrays.are_arrays([1, 2], None, None)
    assert not arrays.are_arrays(tf.data.Dataset.from_tensors(X), None, None)
    assert not arrays.are_arrays(None, None, None)


def test_keras_chooses_the_batch_size_and_the_weights() -> None:
    inputs, size = arrays.batched_inputs(X, Y, None, None, None)
    assert (len(inputs), size) == (2, 32)
    assert arrays.batched_inputs(X, Y, None, None, 3)[1] == 4
    assert arrays.batched_inputs(X, Y, None, 5, 3)[1] == 5
    (_, _, weights), _ = arrays.batched_inputs(X, Y, None, 5, None, class_weight={0: 1.0, 1: 3.0})
    assert weights.tolist() == [1.0, 3.0] * 5
    (_, _, (one, other)), _ = arrays.batched_inputs([X, X], [Y, Y], Y, 5, None)
    assert one is other is Y
    with pytest.raises(ValueError, match="Data cardinality is ambiguous"):
        arrays.batched_inputs(X, Y[:5], None, 5, None)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_last_part_is_split_off(on_disk: bool, tmp_path: Path) -> None:
    x: Any = X
    if on_disk:
        np.save(tmp_path / "x.npy", X)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    (train_x, train_y, weight), (val_x, val_y, _) = arrays.split((x, Y, None), 0.25)
    np.testing.assert_array_equal(train_x, X[:7])
    np.testing.assert_array_equal(val_x, X[7:])
    assert train_y.tolist() == Y[:7].tolist()
    assert val_y.tolist() == Y[7:].tolist()
    assert weight is None
    assert isinstance(val_x, np.memmap) == on_disk
    assert np.shares_memory(val_x, x) == on_disk  # Keras has converted the floats of the other.


def test_floats_become_keras_own() -> None:
    assert arrays.to_tensorflow(X).dtype == np.float32
    assert arrays.to_tensorflow(Y).dtype == Y.dtype
    assert arrays.to_tensorflow(X.astype("uint8")).dtype == np.uint8
    assert arrays.to_tensorflow(pd.Series(Y)).shape == (10, 1)
    assert arrays.to_tensorflow(np.array(["a", "b"], object)).dtype == tf.string
