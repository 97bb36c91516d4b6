"""What travels with the gradients: every rank's wishes out, everybody's wishes in.

A rank must not stop, or save, alone: the others would wait for it for ever. Asking all of them is a
collective, and one at every step would cost as much as the gradients of a small model. So three
numbers, one for each thing that a rank may wish for, are reduced together with the gradients,
which happens anyway. A wish that exists before a step is granted on all ranks after it.

How long a rank waits there for the others is added up, if a supervisor wants to know who is slow.

Two more numbers go along, the sum of the losses and their weight, so that the loss which callbacks
see after each batch is that of the global batches and not that of the rank's own share.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import tensorflow as tf


class Wish(IntEnum):
    """What all ranks do as soon as one rank wishes it."""

    LEAVE = 0
    STOP = 1
    SAVE = 2


class Riders:
    """The numbers that travel, and where they wait before and after.

    The variables live on the CPU, where Python reads and writes them without a transfer, and stand
    outside of any model, so that no checkpoint holds them.

    Attributes:
        share: float32 scalar variable: the weight of this rank's loss in the next step, 1 unless
            the ranks' pieces of the global batch differ in size.
        loss_tracker: The `keras.metrics.Mean` that the train step keeps the loss in.
        last: What was granted last.
        waited: float64 scalar variable: seconds spent in the exchange since the process began.
    """

    def __init__(self) -> None:
        self.loss_tracker: Any = None
        self.last: frozenset[Wish] = frozenset()
        with tf.device("CPU:0"):
            self.share = tf.Variable(1.0, trainable=False)
            self.waited = tf.Variable(0.0, trainable=False, dtype=tf.float64)
            self._out = tf.Variable(tf.zeros([len(Wish)]), trainable=False)
            self._in = tf.Variable(tf.zeros([len(Wish) + 2]), trainable=False)
        self._wished = np.zeros(len(Wish), np.float32)
        self._nothing = np.zeros(len(Wish) + 2, np.float32)
        self._share = 1.0

    # In the train step

    def depart(self) -> Any:
        """Return this rank's numbers: a float32 tensor of shape `[5]`."""
        tracker = self.loss_tracker
        if tracker is None:
            return tf.concat([self._out, tf.zeros([2])], 0)
        loss = [tf.cast(variable.value, tf.float32) for variable in (tracker.total, tracker.count)]
        return tf.concat([self._out, tf.stack(loss)], 0)

    def arrive(self, numbers: Any) -> None:
        """Keep the sums (or means) over all ranks of what `depart` returned."""
        self._in.assign(numbers)

    # Between steps

    def weigh(self, share: float) -> None:
        """Set `share`."""
        if share != self._share:
            self._share = share
            self.share.assign(share)

    def wish(self, wish: Wish, wanted: bool) -> None:
        """Say whether this rank wishes for something."""
        if self._wished[wish] != wanted:
            self._wished[wish] = wanted
            self._out.assign(self._wished)

    def wishes(self, wish: Wish) -> bool:
        """Tell whether this rank has a wish that has not been granted."""
        return bool(self._wished[wish])

    def take(self) -> float | None:
        """Take what arrived in the last step; `last` is then what was granted after it.

        Granted is what any rank had wished for before the step.

        Returns:
            The mean loss over all ranks since the epoch began; `None` if the train step does not
            keep it in Keras's loss tracker. The same on all ranks.
        """
        # What `self._in.numpy()` does, in a third of the time.
        arrived = tf.raw_ops.ReadVariableOp(resource=self._in.handle, dtype=tf.float32).numpy()
        total, count = arrived[len(Wish) :]
        self.last = frozenset(wish for wish in Wish if arrived[wish] != 0)
        for wish in self.last:
            self.wish(wish, False)
        if self.last:
            self._in.assign(self._nothing)
        return float(total / count) if count else None
