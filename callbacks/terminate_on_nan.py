"""`TerminateOnNaN` that stops every process and prints on one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distrib.cluster import current

from .mixins import StateInAttributes


class TerminateOnNaN(StateInAttributes, keras.callbacks.TerminateOnNaN):
    """Stop training when the loss is not a finite number.

    Keras's `TerminateOnNaN`, which prints on the chief only. It has no state.

    Args:
        raise_error: Whether to raise an error instead of ending training normally. Defaults to
            `False`.

    Raises:
        RuntimeError: From the batch with the bad loss, if `raise_error` is true.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 3)), np.full(8, np.nan)
    >>> history = model.fit(x, y, epochs=9, callbacks=[TerminateOnNaN()], verbose=0)
    Batch 0: Invalid loss, terminating training
    """

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop training when the loss is not a finite number."""
        # Keras 3.12 has no `raise_error` yet.
        if current().is_chief or getattr(self, "raise_error", False):
            super().on_batch_end(batch, logs)
            return
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(loss):
            self.model.stop_training = True
