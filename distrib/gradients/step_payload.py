"""Requests and the loss, sent with the gradients of every step.

A rank must not stop or save alone: the others would wait for it forever. Agreement needs a
collective. One per step would cost as much as reducing a small model's gradients, so three flags,
one for each `Request`, are packed into the gradient allreduce. What any rank requests before a step
is agreed on all ranks after it.

The sum of the losses and their weight are packed as well, so that callbacks see the loss of the
global batch after a batch, not the loss of their rank's shard.

Each rank adds up the time that it spends in the exchange, so that the supervisor can tell which
rank the others wait for.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import tensorflow as tf


class Request(IntEnum):
    """An action that all ranks take as soon as any of them requests it."""

    PREEMPT = 0
    STOP = 1
    SAVE = 2


class StepPayload:
    """The numbers to send with the next step's gradients, and those received with the last.

    The variables are on the CPU, where Python reads and writes them without a transfer, and belong
    to no model, so that no checkpoint holds them.

    Attributes:
        share: float32 scalar variable: the weight of this rank's loss in the next step, 1 unless
            the ranks' shards of the global batch differ in size.
        loss_tracker: The `keras.metrics.Mean` in which the train step accumulates the loss.
        agreed: The requests agreed in the last step.
        wait_seconds: float64 scalar variable: seconds spent in the exchange since the start.
    """

    def __init__(self) -> None:
        self.loss_tracker: Any = None
        self.agreed: frozenset[Request] = frozenset()
        with tf.device("CPU:0"):
            self.share = tf.Variable(1.0, trainable=False)
            self.wait_seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)
            self._sent = tf.Variable(tf.zeros([len(Request)]), trainable=False)
            self._received = tf.Variable(tf.zeros([len(Request) + 2]), trainable=False)
        self._requests = np.zeros(len(Request), np.float32)
        self._zeros = np.zeros(len(Request) + 2, np.float32)
        self._share = 1.0

    # In the train step

    def pack(self) -> Any:
        """Return this rank's numbers: a float32 tensor of shape `[5]`."""
        tracker = self.loss_tracker
        if tracker is None:
            return tf.concat([self._sent, tf.zeros([2])], 0)
        loss = [tf.cast(variable.value, tf.float32) for variable in (tracker.total, tracker.count)]
        return tf.concat([self._sent, tf.stack(loss)], 0)

    def unpack(self, numbers: Any) -> None:
        """Store the sums (or means) over all ranks of the tensors that `pack` returned."""
        self._received.assign(numbers)

    # Between steps

    def set_share(self, share: float) -> None:
        """Set `share`."""
        if share != self._share:
            self._share = share
            self.share.assign(share)

    def request(self, request: Request, wanted: bool) -> None:
        """Set or withdraw a request of this rank, from the next step on."""
        if self._requests[request] != wanted:
            self._requests[request] = wanted
            self._sent.assign(self._requests)

    def is_requested(self, request: Request) -> bool:
        """Tell whether this rank has made a request that is not agreed yet."""
        return bool(self._requests[request])

    def read(self) -> float | None:
        """Read the last step's numbers, and set `agreed` to all requests made before it.

        Returns:
            The mean loss over all ranks since the epoch began, the same on all ranks; `None` if the
            train step does not keep the loss in Keras's loss tracker.
        """
        # Same as `self._received.numpy()`, in a third of the time.
        handle = self._received.handle
        received = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32).numpy()
        total, count = received[len(Request) :]
        self.agreed = frozenset(request for request in Request if received[request] != 0)
        for request in self.agreed:
            self.request(request, False)
        if self.agreed:
            self._received.assign(self._zeros)
        return float(total / count) if count else None
