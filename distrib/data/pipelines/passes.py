"""All passes over a pipeline, by one iterator whose state can be saved.

It goes through all epochs, so its state holds the order of the epochs to come, too. Batches, and
marks at the ends of passes, are `tf.experimental.Optional`s. They hold any structure in one tensor,
ragged and sparse tensors included. The state is that of TensorFlow's operation
`SerializeIterator`, which `tf.train.Checkpoint` uses; only private names lead to it without a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_dataset_ops

# TensorFlow's `ExternalStatePolicy`: operations with a state are found by `steps.py`.
_IGNORE = 1


class Passes:
    """Goes through all passes over a pipeline, and can be saved.

    `next` returns `Optional`s: of each pass its batches, then an empty one. A pipeline of known
    length is repeated, and the ends are counted: Keras can draw from `batches` itself then.

    Args:
        pipeline: A `tf.data.Dataset` of batches.
        once: Whether there is one pass only. Defaults to `False`.

    Attributes:
        length: Number of batches in a pass; `None` if not known, or without end.
        batches: The iterator over the batches of all passes, if their ends need no marks.
        entry_spec: Structure of what `next` returns.
        end: What it returns at the end of a pass.
    """

    def __init__(self, pipeline: Any, once: bool = False) -> None:
        self._pipeline, self._once = pipeline, once
        count = int(pipeline.cardinality())
        self.length = count if count > 0 and not once else None
        self.entry_spec = tf.OptionalSpec(pipeline.element_spec)
        self.end = tf.experimental.Optional.empty(pipeline.element_spec)
        self._has_marks = self.length is None and count != tf.data.INFINITE_CARDINALITY
        self._position = 0  # In the pass, if its length is known.
        data = _marked(pipeline) if self._has_marks else pipeline
        options = tf.data.Options()
        # It would accept operations with a state, and not save what they hold.
        options.experimental_symbolic_checkpoint = False
        # See `Dataset`.
        options.autotune.enabled = False
        self.batches = iter((data if once else data.repeat()).with_options(options))

    def __next__(self) -> Any:
        if self._has_marks:
            return next(self.batches)
        if self._position == self.length:
            self._position = 0
            return self.end
        batch = next(self.batches)
        self._position += self.length is not None
        return tf.experimental.Optional.from_value(batch)

    def anew(self) -> Passes:
        """Return all passes by another iterator, which goes on with the order of the next pass."""
        return Passes(self._pipeline, self._once)

    def is_savable(self) -> bool:
        """Whether TensorFlow can save the state, but for that of operations in `map`."""
        try:
            self._serialize()
        except (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError):
            return False
        return True

    def save(self) -> dict[str, Any]:
        """Return the state: one array, the lengths of its parts, and the position in the pass."""
        parts = self._serialize()
        return {
            "parts": np.frombuffer(b"".join(parts), np.uint8),
            "lengths": [len(part) for part in parts],
            "position": self._position,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        data, parts, begin = state["parts"].tobytes(), [], 0
        for length in state["lengths"]:
            parts.append(tf.io.parse_tensor(data[begin : begin + length], tf.variant))
            begin += length
        gen_dataset_ops.deserialize_iterator(self.batches._iterator_resource, tf.stack(parts))
        self._position = state["position"]

    def _serialize(self) -> list[bytes]:
        resource = self.batches._iterator_resource
        state = gen_dataset_ops.serialize_iterator(resource, _IGNORE)
        return [tf.io.serialize_tensor(part).numpy() for part in state]


@tf.autograph.experimental.do_not_convert
def _marked(pipeline: Any) -> Any:
    """Return the batches of a pass and a mark at its end."""
    is_tuple = isinstance(pipeline.element_spec, tuple)

    def wrap(*parts: Any) -> Any:
        return tf.experimental.Optional.from_value(parts if is_tuple else parts[0])

    end = tf.experimental.Optional.empty(pipeline.element_spec)
    return pipeline.map(wrap).concatenate(tf.data.Dataset.from_tensors(end))


def is_whole(state: dict[str, Any], shuffles: int) -> bool:
    """Tell whether the state of an iterator determines all that comes.

    Near the end of a pass it may not: a step that has all of its source's elements deletes the
    source's iterator, and with it what `shuffle` knows of the next pass.

    Args:
        state: Of `Passes.save`.
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
