"""All passes over a pipeline as one `tf.data.Dataset`, whose iterator's state can be saved.

One iterator goes through all epochs, with a mark after each, so that its state holds the order of
the epochs to come, too. Batches and marks are `tf.experimental.Optional`s. They hold any structure
in one tensor, ragged and sparse tensors included. The state is that of TensorFlow's operation
`SerializeIterator`, which `tf.train.Checkpoint` uses; only private names lead to it without a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_dataset_ops

# TensorFlow's `ExternalStatePolicy`: operations with a state are found by `steps.py`.
_IGNORE = 1


@tf.autograph.experimental.do_not_convert
def passes_over(pipeline: Any, once: bool = False) -> Any:
    """Return a `tf.data.Dataset` of `Optional`s: of each pass its batches, and an empty one.

    Args:
        pipeline: A `tf.data.Dataset` of batches.
        once: Whether there is one pass only. Defaults to `False`.
    """
    is_tuple = isinstance(pipeline.element_spec, tuple)

    def wrap(*parts: Any) -> Any:
        return tf.experimental.Optional.from_value(parts if is_tuple else parts[0])

    end = tf.experimental.Optional.empty(pipeline.element_spec)
    batches = pipeline.map(wrap).concatenate(tf.data.Dataset.from_tensors(end))
    options = tf.data.Options()
    # It would accept operations with a state, and not save what they hold.
    options.experimental_symbolic_checkpoint = False
    # See `Dataset`.
    options.autotune.enabled = False
    return (batches if once else batches.repeat()).with_options(options)


def is_savable(iterator: Any) -> bool:
    """Whether TensorFlow can save the state of an iterator, but for that of operations in `map`."""
    try:
        _serialize(iterator)
    except (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError):
        return False
    return True


def save_iterator(iterator: Any) -> dict[str, Any]:
    """Return the state of an iterator: one array, and the lengths of its parts."""
    parts = _serialize(iterator)
    return {
        "parts": np.frombuffer(b"".join(parts), np.uint8),
        "lengths": [len(part) for part in parts],
    }


def restore_iterator(iterator: Any, state: dict[str, Any]) -> None:
    """Let an iterator continue from a state."""
    data, parts, begin = state["parts"].tobytes(), [], 0
    for length in state["lengths"]:
        parts.append(tf.io.parse_tensor(data[begin : begin + length], tf.variant))
        begin += length
    gen_dataset_ops.deserialize_iterator(iterator._iterator_resource, tf.stack(parts))


def is_whole(state: dict[str, Any], shuffles: int) -> bool:
    """Tell whether the state of an iterator determines all that comes.

    Near the end of a pass it may not: a step that has all of its source's elements deletes the
    source's iterator, and with it what `shuffle` knows of the next pass.

    Args:
        state: Of `save_iterator`.
        shuffles: Number of steps whose order is another one in each pass.
    """
    return bool(state["parts"].tobytes().count(b"num_random_samples") >= 2 * shuffles)


def save_batch(batch: Any) -> Any:
    """Return a batch or mark as an array of bytes."""
    return np.frombuffer(tf.io.serialize_tensor(tensor_of(batch)).numpy(), np.uint8)


def restore_batch(state: Any, spec: Any) -> Any:
    """Undo `save_batch`.

    Args:
        state: The array.
        spec: The `tf.OptionalSpec`.
    """
    return with_spec(tf.io.parse_tensor(state.tobytes(), tf.variant), spec)


def tensor_of(batch: Any) -> Any:
    """Return the tensor that holds an `Optional`."""
    (variant,) = tf.nest.flatten(batch, expand_composites=True)
    return variant


def with_spec(variant: Any, spec: Any) -> Any:
    """Return the `Optional` that a tensor holds.

    Args:
        variant: Of the `Optional`.
        spec: Its `tf.OptionalSpec`.
    """
    return tf.nest.pack_sequence_as(spec, [variant], expand_composites=True)


def _serialize(iterator: Any) -> list[bytes]:
    state = gen_dataset_ops.serialize_iterator(iterator._iterator_resource, _IGNORE)
    return [tf.io.serialize_tensor(part).numpy() for part in state]
