"""`ReduceLROnPlateau` whose patience survives a restart."""

from __future__ import annotations

import keras

from .mixins import PrintsOnChief, StateInAttributes


class ReduceLROnPlateau(StateInAttributes, PrintsOnChief, keras.callbacks.ReduceLROnPlateau):
    """Lower the learning rate when a monitored quantity no longer improves.

    Keras's `ReduceLROnPlateau`, whose best value, patience and cooldown survive restarts. Every
    process decides, on the same global values; the chief prints.

    Args:
        monitor: Name of the quantity in `logs`. Defaults to `"val_loss"`.
        factor: Factor for the learning rate, below 1. Defaults to `0.1`.
        patience: Epochs without improvement after which the rate is lowered. Defaults to `10`.
        verbose: 1 prints a message on each change, 0 does not. Defaults to `0`.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric. Defaults to `"auto"`.
        min_delta: Smallest change that counts as an improvement. Defaults to `1e-4`.
        cooldown: Epochs to wait after a change before counting again. Defaults to `0`.
        min_lr: Lower bound of the learning rate. Defaults to `0.0`.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> reduce = ReduceLROnPlateau(monitor="loss", factor=0.5, patience=3)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=20, callbacks=[reduce], verbose=0)
    """

    _state_attributes = ("best", "wait", "cooldown_counter")
