"""What Keras decides about the arrays that it is given: what is an array, splits, checks, dtypes.

Names that are private in Keras, tried with 3.12 and 3.15:

- `can_convert_arrays(arrays)`, by which Keras tells arrays from other data
- `ArrayDataAdapter(...)`, which checks arrays, makes `sample_weight` of `class_weight`, and chooses
  the batch size; its `_inputs` and `_batch_size`
- `array_slicing.train_validation_split(arrays, fraction)`
- `array_slicing.convert_to_sliceable(array, target_backend)`, Keras's conversion to a tensor
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter, can_convert_arrays


def are_arrays(*data: Any) -> bool:
    """Tell whether Keras treats data as arrays, and not all of them are `None`."""
    given = any(leaf is not None for leaf in keras.tree.flatten(data))
    return given and bool(can_convert_arrays(data))


def batched_inputs(
    x: Any,
    y: Any,
    sample_weight: Any,
    batch_size: int | None,
    steps: int | None,
    class_weight: Any = None,
) -> tuple[Any, int]:
    """Return the arrays as Keras packs them, and the batch size that it chooses.

    Raises:
        ValueError: In Keras's words, such as for arrays of unequal length.
    """
    adapter = ArrayDataAdapter(
        x, y, sample_weight, batch_size=batch_size, steps=steps, class_weight=class_weight
    )
    return adapter._inputs, adapter._batch_size


def split(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Split arrays as `validation_split` does. What `np.memmap` holds stays on disk.

    Raises:
        ValueError: In Keras's words.
    """

    def numbers_of(leaf: Any) -> Any:
        # Keras would load floats to convert them, so it gets the numbers of the rows instead.
        return np.arange(len(leaf)) if isinstance(leaf, np.memmap) else leaf

    def part_of(leaf: Any, part: Any) -> Any:
        return leaf[part[0] : part[-1] + 1] if isinstance(leaf, np.memmap) else part

    parts = array_slicing.train_validation_split(
        keras.tree.map_structure(numbers_of, arrays), validation_split
    )
    train, validation = (keras.tree.map_structure(part_of, arrays, part) for part in parts)
    return train, validation


def to_tensorflow(array: Any) -> Any:
    """Return an array as Keras hands it to `tf.data`: floats in Keras's `floatx`."""
    return array_slicing.convert_to_sliceable(array, target_backend="tensorflow")
