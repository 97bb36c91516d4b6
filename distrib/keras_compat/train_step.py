"""Keras's train step in two halves, so that XLA can compile both and leave out what is between.

The first half ends with the gradients, and the second begins with the optimizer. The first runs
Keras's own method on a stand-in for the model, the second does what the method does after it. Tried
with 3.12 and 3.15:

- `Model.train_step(data)` takes all it needs from the model, calls `optimizer.scale_loss(loss)`,
  then `optimizer.apply_gradients(pairs)`, and returns
  `compute_metrics(x, y, y_pred, sample_weight=...)`
- `Model._make_function(step)`, which makes the functions that train and test, compiled if
  `jit_compile` is set
- `keras.src.backend.get_keras_mask(tensor)` and `set_keras_mask(tensor, mask)`: an attribute that
  metrics read, which a tensor loses on its way out of a `tf.function`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

Step = Callable[[Any], Any]


class FirstHalf(NamedTuple):
    """What the first half of a train step computes.

    Attributes:
        gradients: Of the model's trainable weights, as `tf.GradientTape` returns them.
        y_pred: The model's output.
        masks: The Keras mask of each tensor of `y_pred`, or `None`.
    """

    gradients: list[Any]
    y_pred: Any
    masks: list[Any]


def has_own_train_step(model: Any) -> bool:
    """Tell whether a model's train step is not Keras's."""
    return getattr(model.train_step, "__func__", None) is not keras.Model.train_step


def replace_train_step(step_of: Callable[[Any], Step | None]) -> None:
    """Choose the train step of models that XLA is to compile.

    Args:
        step_of: Given the model, returns a step that compiles what it can by itself; `None` to
            have Keras compile the model's own step.
    """

    def make_function(model: Any, step_function: Step) -> Any:
        make = TensorFlowTrainer._make_function
        compiles = model.jit_compile and not model.run_eagerly
        trains = step_function == model.train_step
        step = step_of(model) if compiles and trains else None
        if step is None:
            return make(model, step_function)
        asked, model.jit_compile = model.jit_compile, False
        try:
            return make(model, step)
        finally:
            model.jit_compile = asked

    keras.Model._make_function = make_function


def first_half(model: Any, data: Any, scale_loss: Callable[[Any], Any]) -> FirstHalf:
    """Compute the loss of a batch, update its tracker, and compute the gradients.

    Args:
        model: A compiled model with Keras's own train step.
        data: The batch.
        scale_loss: Called with the loss in place of the optimizer's method.
    """
    half = _UpToGradients(model, scale_loss)
    keras.Model.train_step(half, data)
    masks = [get_keras_mask(tensor) for tensor in keras.tree.flatten(half.y_pred)]
    return FirstHalf(half.gradients, half.y_pred, masks)


def metrics_of(model: Any, data: Any, first: FirstHalf) -> Mapping[str, Any]:
    """Update the metrics of a model, with which its train step ends, and return them."""
    for tensor, mask in zip(keras.tree.flatten(first.y_pred), first.masks, strict=True):
        if mask is not None:
            set_keras_mask(tensor, mask)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    metrics: Mapping[str, Any] = model.compute_metrics(
        x, y, first.y_pred, sample_weight=sample_weight
    )
    return metrics


class _UpToGradients:
    """Stands in for a model and its optimizer in a train step: keeps what the step hands them."""

    def __init__(self, model: Any, scale_loss: Callable[[Any], Any]) -> None:
        self._model = model
        self.optimizer = self
        self.scale_loss = scale_loss
        self.gradients: list[Any] = []
        self.y_pred: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def apply_gradients(self, pairs: Any) -> None:
        self.gradients = [gradient for gradient, _ in pairs]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
        self.y_pred = y_pred
