"""`EarlyStopping` whose patience survives a restart."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from distrib.cluster import current

from .mixins import PrintsOnChief, StateInAttributes


class EarlyStopping(StateInAttributes, PrintsOnChief, keras.callbacks.EarlyStopping):
    """Stop training when a monitored quantity no longer improves.

    Keras's `EarlyStopping`, whose patience, best value and best weights survive restarts. Every
    process decides, on the same global values; the chief prints.

    Args:
        monitor: Name of the quantity in `logs`. Defaults to `"val_loss"`.
        min_delta: Smallest change that counts as an improvement. Defaults to `0`.
        patience: Epochs without improvement after which training stops. Defaults to `0`.
        verbose: 1 prints a message on stopping, 0 does not. Defaults to `0`.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric. Defaults to `"auto"`.
        baseline: Value that must be beaten for patience to start again. Defaults to `None`.
        restore_best_weights: Whether the model ends with the weights of its best epoch. Defaults to
            `False`.
        start_from_epoch: Epochs to skip before monitoring. Defaults to `0`.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> stop = EarlyStopping(monitor="loss", patience=2, restore_best_weights=True)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=50, callbacks=[stop], verbose=0)
    """

    _state_attributes = ("wait", "stopped_epoch", "best", "best_epoch", "best_weights")

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state, and warn if the best weights were not kept in it."""
        super().set_state(state)
        has_best = self.best is not None and np.isfinite(self.best)
        missing = has_best and self.restore_best_weights and self.best_weights is None
        if missing and current().is_chief:
            warnings.warn(
                f"EarlyStopping: the weights of epoch {self.best_epoch + 1}, the best so far, "
                "were not kept, because `restore_best_weights` was not set then. If no later "
                "epoch is better, the model ends with the weights of another one.",
                stacklevel=2,
            )
