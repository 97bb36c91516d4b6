"""The epoch and step at which the next pass over a dataset starts.

Keras creates iterators that it never draws from, so a pass reads the position when it produces its
first batch, not when its iterator is created. The position is a Python object because a
`tf.Variable` created inside `strategy.scope()` would be mirrored to the devices, where an input
pipeline cannot read it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import tensorflow as tf


class DatasetPosition:
    """Where the next pass starts; shared by all datasets derived from one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self._step = 0

    def seek(self, epoch: int, step: int) -> None:
        """Let the next pass start at this epoch and step."""
        with self._lock:
            self._epoch, self._step = epoch, step

    def passes(self, endless: bool) -> Any:
        """Return a `tf.data.Dataset` of (epoch, first step), one element an epoch of the pass.

        Args:
            endless: Whether the pass continues with the next epoch, without end.
        """

        def start(_: Any) -> tuple[Any, Any]:
            epoch, step = tf.numpy_function(self._start_pass, [], [tf.int64, tf.int64])
            return tf.ensure_shape(epoch, []), tf.ensure_shape(step, [])

        def epochs(epoch: Any, step: Any) -> Any:
            # Counted here instead of calling `_start_pass` for each epoch: prefetching runs ahead
            # of the training and must not move the position of the next pass.
            return tf.data.Dataset.counter().map(
                lambda i: (epoch + i, tf.where(tf.equal(i, 0), step, tf.zeros_like(step)))
            )

        first = tf.data.Dataset.from_tensors(0).map(start)
        return first.flat_map(epochs) if endless else first

    def _start_pass(self) -> tuple[np.int64, np.int64]:
        """Return the position, and move it to the start of the next epoch."""
        with self._lock:
            start = np.int64(self._epoch), np.int64(self._step)
            self._epoch, self._step = self._epoch + 1, 0
        return start
