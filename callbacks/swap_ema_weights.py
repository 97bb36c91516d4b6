"""`SwapEMAWeights` that swaps exactly."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from .mixins import StateInAttributes


class SwapEMAWeights(StateInAttributes, keras.callbacks.SwapEMAWeights):
    """Evaluate with the moving average of the weights, train with the weights.

    Keras's `SwapEMAWeights`. Keras 3.15.1 swaps by adding and subtracting, which rounds, so every
    validation changes the last bits of both. Here the values are exchanged, so validation does not
    affect training. Needs an optimizer with `use_ema=True`.

    Args:
        swap_on_epoch: Whether the model also has the averages from `on_epoch_end` to the next
            `on_epoch_begin`, so that callbacks after this one, such as `ModelCheckpoint`, see them.
            Defaults to `False`.

    Raises:
        ValueError: While training, if the optimizer has no moving average.

    Example:
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    >>> x, y = np.ones((8, 3)), np.ones(8)
    >>> swap = SwapEMAWeights()
    >>> history = model.fit(x, y, validation_data=(x, y), callbacks=[swap], verbose=0)
    """

    _state_attributes = ("_ema_weights_in_model",)

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the weights back after `predict`."""
        # Keras 3.15.1 tests `if not self._ema_weights_in_model` here, which is never true after
        # on_predict_begin: the averages stay in the model, and the next fit trains them.
        self.on_test_end(logs)

    def _tf_swap_variables(self, optimizer: Any) -> None:
        # In cross-replica context, where `update` hands over one device's copies at a time.
        update = optimizer._distribution_strategy.extended.update
        pairs = zip(
            optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
        )
        for weight, average in pairs:
            update(_raw(weight), _swap, args=(_raw(average),))


def _raw(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _swap(a: Any, b: Any) -> None:
    temporary = tf.identity(a.read_value())
    a.assign(b.read_value())
    b.assign(temporary)
