"""Requests and the loss, sent along with the gradients of every step.

A rank must not stop or save alone: the others would wait for it forever. Agreement needs a
collective. One per step would cost as much as reducing a small model's gradients, so three flags,
one for each `Request`, are packed into the gradient allreduce. What any rank requests before a step
is agreed on all ranks after it.

The sum of the losses and their weight are packed as well, so that the loss that callbacks see after
a batch is that of the global batch and not that of the rank's own share.

The time that a rank spends in the exchange is added up, so that the supervisor can tell which rank
the others wait for.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import tensorflow as tf


class Request(IntEnum):
    """What all ranks do as soon as one of them requests it."""

    PREEMPT = 0
    STOP = 1
    SAVE = 2


class StepPayload:
    """The numbers to send with the next step's gradients, and those that came with the last.

    The variables live on the CPU, where Python reads and writes them without a transfer, and stand
    outside of any model, so that no checkpoint holds them.

    Attributes:
        share: float32 scalar variable: the weight of this rank's loss in the next step, 1 unless
            the ranks' pieces of the global batch differ in size.
        loss_tracker: The `keras.metrics.Mean` that the train step keeps the loss in.
        agreed: What was agreed in the last step.
        wait_seconds: float64 scalar variable: seconds spent in the exchange since the start.
    """

    def __init__(self) -> None:
        self.loss_tracker: Any = None
        self.agreed: frozenset[Request] = frozenset()
        with tf.device("CPU:0"):
            self.share = tf.Variable(1.0, trainable=False)
            self.wait_seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)
            self._out = tf.Variable(tf.zeros([len(Request)]), trainable=False)
            self._in = tf.Variable(tf.zeros([len(Request) + 2]), trainable=False)
        self._requested = np.zeros(len(Request), np.float32)
        self._nothing = np.zeros(len(Request) + 2, np.float32)
        self._share = 1.0

    # In the train step

    def pack(self) -> Any:
        """Return this rank's numbers: a float32 tensor of shape `[5]`."""
        tracker = self.loss_tracker
        if tracker is None:
            return tf.concat([self._out, tf.zeros([2])], 0)
        loss = [tf.cast(variable.value, tf.float32) for variable in (tracker.total, tracker.count)]
        return tf.concat([self._out, tf.stack(loss)], 0)

    def unpack(self, numbers: Any) -> None:
        """Keep the sums (or means) over all ranks of what `pack` returned."""
        self._in.assign(numbers)

    # Between steps

    def set_share(self, share: float) -> None:
        """Set `share`."""
        if share != self._share:
            self._share = share
            self.share.assign(share)

    def request(self, request: Request, wanted: bool) -> None:
        """State whether this rank requests something, from the next step on."""
        if self._requested[request] != wanted:
            self._requested[request] = wanted
            self._out.assign(self._requested)

    def is_requested(self, request: Request) -> bool:
        """Tell whether this rank has a request that has not been agreed yet."""
        return bool(self._requested[request])

    def read(self) -> float | None:
        """Read the last step's numbers; `agreed` is then what any rank had requested before it.

        Returns:
            The mean loss over all ranks since the epoch began; `None` if the train step does not
            keep it in Keras's loss tracker. The same on all ranks.
        """
        # What `self._in.numpy()` does, in a third of the time.
        received = tf.raw_ops.ReadVariableOp(resource=self._in.handle, dtype=tf.float32).numpy()
        total, count = received[len(Request) :]
        self.agreed = frozenset(request for request in Request if received[request] != 0)
        for request in self.agreed:
            self.request(request, False)
        if self.agreed:
            self._in.assign(self._nothing)
        return float(total / count) if count else None
