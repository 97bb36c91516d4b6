from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distrib.keras_compat.py_datasets import spec_of, standardize_batch

X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("batch", "structure"),
    [(X, (X,)), ([X, X], (X, X)), ((X, X, X), (X, X, X)), ({"a": X}, {"a": X})],
)
def test_a_batch_becomes_what_keras_makes_of_it(batch: Any, structure: Any) -> None:
    tf.nest.assert_same_structure(standardize_batch(batch), structure)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="must return a tuple or a dict"):
        standardize_batch("x.png")


def test_dimensions_that_differ_are_unknown() -> None:
    spec = spec_of([(X,), (np.zeros((2, 4), np.float32),)])
    assert spec == (tf.TensorSpec((None, None), tf.float32),)
