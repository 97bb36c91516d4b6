"""Keras's data adapters: what Keras makes of data that is neither arrays nor a `tf.data.Dataset`.

Private names, tried with 3.12 and 3.15:

- `get_data_adapter`, `is_torch_dataloader`, `is_grain_dataset` of `trainers.data_adapters`
- `GeneratorDataAdapter`, whose `get_tf_dataset()` ends in a `prefetch`
"""

from __future__ import annotations

from types import GeneratorType
from typing import Any

from keras.src.trainers import data_adapters


def is_iterable_of_batches(data: Any) -> bool:
    """Tell whether Keras takes batches from data by Python's iteration."""
    return (
        isinstance(data, GeneratorType)
        or data_adapters.is_torch_dataloader(data)
        or data_adapters.is_grain_dataset(data)
    )


def pipeline_of(data: Any) -> Any:
    """Return the `tf.data.Dataset` by which Keras reads such data, without reading ahead.

    Args:
        data: As Keras takes it.
    """
    pipeline = data_adapters.get_data_adapter(data).get_tf_dataset()
    ends_in_prefetch = type(pipeline).__name__ == "_PrefetchDataset"
    return pipeline._inputs()[0] if ends_in_prefetch else pipeline
