"""Create every variable of a training step before the first step.

A checkpoint can only be restored into variables that exist, and Keras leaves many of them (metrics,
optimizer slots, the layers of a subclassed model) to the first train step. Fresh and resumed runs
both build here, at the same moment and in the same way, so that both create the same variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops.op_selector import UnliftableError

from distrib.errors import ConfigurationError
from distrib.keras_compat.trainer import build_symbolically

# What a step consists of. `compute_loss` and `compute_metrics` may use layers that `call` does not.
_STEP = ("train_step", "compute_loss", "compute_metrics")
_MAX_REASON = 200


def build(model: Any, element_spec: Any) -> None:
    """Build model, losses, metrics and optimizer without running a step.

    Keras knows how to build what its own `train_step` uses, by tracing a forward pass. A step of
    the user's may use anything, so it is traced itself, unless the model runs eagerly, where Python
    code in it may not survive a trace.

    Args:
        model: A compiled `keras.Model`.
        element_spec: Of the batches that a train step gets: `x`, `(x,)`, `(x, y)` or
            `(x, y, weight)`.

    Raises:
        ConfigurationError: If they cannot be created. Errors of the user's own code are passed on.
    """
    with model.distribute_strategy.scope():
        if model.run_eagerly or all(_is_keras_own(model, method) for method in _STEP):
            _explain(model, lambda: build_symbolically(model, element_spec))
        else:
            _explain(model, lambda: _trace(model, element_spec))


def build_for_epochs(model: Any, element_spec: Callable[[], Any]) -> None:
    """Build what a run needs that is saved between epochs only, where metrics have no state.

    If the model is built already, it is not called: batches without a known shape would not do.

    Args:
        model: A compiled `keras.Model`.
        element_spec: Returns what `build` takes.
    """
    if model.built and all(_is_keras_own(model, method) for method in _STEP):
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    elif not (model.built and model.run_eagerly):
        build(model, element_spec())


def _is_keras_own(model: Any, method: str) -> bool:
    return getattr(type(model), method) is getattr(keras.Model, method)


def _trace(model: Any, element_spec: Any) -> None:
    strategy = model.distribute_strategy
    step = tf.function(lambda data: strategy.run(model.train_step, args=(data,)))
    step.get_concrete_function(element_spec)


def _explain(model: Any, build_it: Callable[[], None]) -> None:
    try:
        build_it()
    except (RuntimeError, UnliftableError) as error:
        raise ConfigurationError(
            f"The variables of {model.name!r} could not be created before training: "
            f"{_reason(model, error)} Create them before `fit`: call every layer or inner model "
            "once on a batch, then call `optimizer.build(variables)` of every optimizer."
        ) from error


def _reason(model: Any, error: BaseException) -> str:
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return "on several devices TensorFlow cannot create them within a `train_step`."
    line = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."
