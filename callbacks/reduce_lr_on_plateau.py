"""`ReduceLROnPlateau` that a restart does not set back to full patience."""

from __future__ import annotations

import keras

from .mixins import PrintsOnChief, StateInAttributes


class ReduceLROnPlateau(StateInAttributes, PrintsOnChief, keras.callbacks.ReduceLROnPlateau):
    """Lower the learning rate when a monitored quantity no longer improves.

    Keras's `ReduceLROnPlateau`, which also keeps its best value, its patience and its cooldown over
    restarts. Every process decides, on the same global values; the chief prints.

    Args:
        monitor: Name of the quantity in `logs`.
        factor: What the learning rate is multiplied by; below 1.
        patience: Epochs without improvement after which it is lowered.
        verbose: 1 prints a message on each change, 0 does not.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric.
        min_delta: Smallest change that counts as an improvement.
        cooldown: Epochs to wait after a change before counting again.
        min_lr: The learning rate never goes below it.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> reduce = ReduceLROnPlateau(monitor="loss", factor=0.5, patience=3)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=20, callbacks=[reduce], verbose=0)
    """

    _state_attributes = ("best", "wait", "cooldown_counter")
