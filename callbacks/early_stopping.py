"""`EarlyStopping` that a restart does not set back to full patience."""

from __future__ import annotations

import keras

from .mixins import PrintsOnChief, StateInAttributes


class EarlyStopping(StateInAttributes, PrintsOnChief, keras.callbacks.EarlyStopping):
    """Stop training when a monitored quantity no longer improves.

    Keras's `EarlyStopping`, which also keeps its patience, its best value and its best weights over
    restarts. Every process decides, on the same global values; the chief prints.

    Args:
        monitor: Name of the quantity in `logs`.
        min_delta: Smallest change that counts as an improvement.
        patience: Epochs without improvement after which training stops.
        verbose: 1 prints a message on stopping, 0 does not.
        mode: `"min"`, `"max"`, or `"auto"`, which goes by the metric.
        baseline: Value that must be beaten for patience to start again.
        restore_best_weights: Whether the model ends with the weights of its best epoch.
        start_from_epoch: Epochs to let pass before monitoring.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> stop = EarlyStopping(monitor="loss", patience=2, restore_best_weights=True)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=50, callbacks=[stop], verbose=0)
    """

    _state_attributes = ("wait", "stopped_epoch", "best", "best_epoch", "best_weights")
