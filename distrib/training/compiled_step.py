"""A rank's train step with XLA: compiled up to the gradients, and again after their exchange.

XLA cannot compile what the ranks exchange. It compiles the forward and backward pass as one
function; the gradients are exchanged outside of it; then it compiles the optimizer and the metrics
as a second one. All happens in the order of Keras's own step and with the same variables, so a run
may change between compiled and other steps, which differ by rounding (and by the random numbers
that XLA draws).

The second half is left as it is if the exchange cannot be taken out of the optimizer, which
accumulates gradients and exchanges them in some steps only, or has an `apply_gradients` of its own.
A `train_step` of the user's cannot be divided and is not compiled at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from distrib.gradients.optimizer import Reducer, reduce_outside_of_loss_scaling, reducer_of
from distrib.keras_compat.layers import layers_of
from distrib.keras_compat.optimizers import has_own_apply_gradients
from distrib.keras_compat.train_step import (
    FirstHalf,
    Step,
    first_half,
    has_own_train_step,
    metrics_of,
)
from distrib.log import log
from distrib.state.build import build


def step_on_ranks(model: Any) -> Step | None:
    """Return the train step of a model that XLA is to compile, on one of several ranks.

    Args:
        model: A compiled `keras.Model`.

    Returns:
        A step that is not to be compiled as a whole; `None` if Keras may compile the model's own.
    """
    reason = _why_not(model)
    if reason is not None:
        log.info(f"the train step of {model.name!r} is not compiled by XLA: {reason}.")
        own: Step = model.train_step
        return own
    reduce_outside_of_loss_scaling(model.optimizer)
    reducer = reducer_of(model.optimizer)
    return None if reducer is None else _CompiledStep(model, reducer)


def _why_not(model: Any) -> str | None:
    if has_own_train_step(model):
        return "it is a `train_step` of its own, in which the ranks exchange gradients"
    if not isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None  # Elsewhere `synchronized` has no effect.
    for layer in layers_of(model):
        if getattr(layer, "synchronized", False):
            return f"the ranks exchange statistics in it, by `synchronized=True` of {layer.name!r}"
    return None


class _CompiledStep:
    """The train step of a model whose optimizer reduces gradients over all ranks."""

    def __init__(self, model: Any, reducer: Reducer) -> None:
        self._model, self._reducer = model, reducer
        self._exchanges_inside = reducer.accumulates or has_own_apply_gradients(model.optimizer)
        self._first = _compiled(self._compute_gradients)
        self._second = _compiled(self._apply)

    def __call__(self, data: Any) -> Mapping[str, Any]:
        self._build(data)
        variables = self._model.trainable_weights
        # Read here: the variable is on the CPU, which code compiled for a GPU does not reach.
        first: FirstHalf = self._first(data, self._reducer.share())
        if self._exchanges_inside:
            if variables:
                pairs = zip(first.gradients, variables, strict=True)
                self._model.optimizer.apply_gradients(pairs)
            return metrics_of(self._model, data, first)
        gradients = self._reducer.reduce(first.gradients, variables)
        reduced = FirstHalf(gradients, first.y_pred, first.masks)
        metrics: Mapping[str, Any] = self._second(data, reduced)
        return metrics

    def _build(self, data: Any) -> None:
        """Create all variables, as `fit` on ranks has done already, but not `train_on_batch`.

        Compiled functions cannot create any, and keep what stands for one that is missing.
        """
        if not (self._model.built and self._model.optimizer.built):
            parts = keras.utils.unpack_x_y_sample_weight(data)
            batch = tuple(part for part in parts if part is not None)
            with tf.init_scope():
                build(self._model, tf.nest.map_structure(tf.type_spec_from_value, batch))

    def _compute_gradients(self, data: Any, share: Any) -> FirstHalf:
        return first_half(self._model, data, lambda loss: self._reducer.scale_loss_by(share, loss))

    def _apply(self, data: Any, first: FirstHalf) -> Mapping[str, Any]:
        self._reducer.apply_reduced(first.gradients, self._model.trainable_weights)
        return metrics_of(self._model, data, first)


def _compiled(function: Any) -> Any:
    # Without AutoGraph, as Keras traces its own train step.
    return tf.function(function, jit_compile=True, reduce_retracing=True, autograph=False)
