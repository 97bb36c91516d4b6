"""Recognizes an ordinary `tf.data.Dataset` that was made from a `cluster.dataset`.

Most methods of `tf.data.Dataset` make a pipeline whose position cannot be set: after `filter`,
step 100 is anywhere. But its examples are this rank's already, and a second split would lose some.

What a dataset was made from only private attributes of TensorFlow 2.21 tell: `_variant_tensor`,
`_inputs` and `_functions`. `test_methods.py` notices when they change.
"""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

_MARK = "_distrib_cluster_dataset"


def mark(dataset: Any) -> None:
    """Let `derivation` recognize a `cluster.dataset`, also in what is made from it."""
    # On the tensor, not only by the class: functions passed to `flat_map` hold the tensor alone.
    setattr(dataset._variant_tensor, _MARK, True)


def derivation(data: Any) -> list[str] | None:
    """Return how a pipeline was made from a `cluster.dataset`.

    Args:
        data: Anything that `fit` takes.

    Returns:
        The operations between the two, such as `["filter", "batch"]`, or an empty list for a
        `cluster.dataset` itself; `None` for what was not made from one.
    """
    if not isinstance(data, tf.data.Dataset):
        return None
    return _derivation(data, set())


def _derivation(dataset: Any, seen: set[int]) -> list[str] | None:
    if hasattr(dataset._variant_tensor, _MARK):
        return []
    if id(dataset) in seen:
        return None
    seen.add(id(dataset))
    for each in dataset._inputs():
        operations = _derivation(each, seen)
        if operations is not None:
            return [*operations, _operation(dataset)]
    for function in dataset._functions():
        if any(hasattr(tensor, _MARK) for tensor in function.function.captured_inputs):
            return [_operation(dataset)]
    return None


def _operation(dataset: Any) -> str:
    """Return a name such as `flat_map` for a class such as `_FlatMapDataset`."""
    name = type(dataset).__name__.strip("_").removesuffix("V2").removesuffix("Dataset")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removeprefix("Parallel")).lower()
