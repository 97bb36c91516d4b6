"""`LearningRateScheduler` that sets the rate once per epoch, even of a resumed epoch."""

from __future__ import annotations

from typing import Any

import keras

from .mixins import PrintsOnChief


class LearningRateScheduler(PrintsOnChief, keras.callbacks.LearningRateScheduler):
    """Set the learning rate at the start of every epoch by a function.

    Keras's `LearningRateScheduler`. The learning rate itself is restored with the optimizer. An
    epoch that is resumed in its middle has its rate already: setting it again would apply a
    schedule like `lr * 0.9` twice, and print a second message.

    Args:
        schedule: Takes the epoch (int, from 0) and the current learning rate (float), returns the
            new learning rate (float).
        verbose: 1 prints a message on each change, 0 does not. Defaults to `0`.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> halve = LearningRateScheduler(lambda epoch, lr: lr if epoch < 2 else lr / 2)
    >>> history = model.fit(np.ones((8, 3)), np.ones(8), epochs=4, callbacks=[halve], verbose=0)
    >>> [round(rate, 6) for rate in history.history["learning_rate"]]
    [0.1, 0.1, 0.05, 0.025]
    """

    def __init__(self, schedule: Any, verbose: int = 0) -> None:
        super().__init__(schedule, verbose)
        self._epoch: int | None = None
        self._resumed_epoch: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the epochs of an earlier `fit`."""
        self._epoch = self._resumed_epoch = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the epoch's learning rate, unless the epoch is resumed."""
        if epoch != self._resumed_epoch:
            super().on_epoch_begin(epoch, logs)
        self._epoch = epoch

    def get_state(self) -> dict[str, Any]:
        """Return the last epoch whose rate was set, or `None`."""
        return {"epoch": self._epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self._epoch = self._resumed_epoch = state["epoch"]
