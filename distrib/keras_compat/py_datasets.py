"""Keras's `PyDataset`: how it makes a tensor batch of what `__getitem__` returns.

Names that are private in Keras, tried with 3.12 and 3.15:

- `PyDatasetAdapter._standardize_batch(batch)`, which makes a tuple of an array or a list, and
  refuses what is not a batch; of the adapter it uses `class_weight` only
- `data_adapter_utils.get_tensor_spec(batches)`, the common spec of some batches, and
  `NUM_BATCHES_FOR_TENSOR_SPEC`, how many Keras takes
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

BATCHES_FOR_SPEC: int = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC
_WITHOUT_CLASS_WEIGHT = SimpleNamespace(class_weight=None)


def standardize_batch(batch: Any) -> Any:
    """Return a batch of a `PyDataset` as a dict or a tuple `(x,)`, `(x, y)`, `(x, y, weight)`.

    Raises:
        ValueError: If it is something else.
    """
    return PyDatasetAdapter._standardize_batch(_WITHOUT_CLASS_WEIGHT, batch)


def spec_of(batches: Sequence[Any]) -> Any:
    """Return the structure of `tf.TensorSpec`s that fits all of some standardized batches.

    The batch dimension is `None`, and so is every dimension in which the batches differ.
    """
    return data_adapter_utils.get_tensor_spec(list(batches))
