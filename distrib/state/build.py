"""Create every variable of a training step before the first step.

A checkpoint can only be restored into variables that exist, and Keras leaves many of them (metrics,
optimizer slots, the layers of a subclassed model) to the first train step. Fresh and resumed runs
both build here, at the same moment and in the same way, so that both create the same variables.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distrib.errors import ConfigurationError
from distrib.keras_compat.trainer import build_symbolically


def build(model: Any, element_spec: Any) -> None:
    """Build model, losses, metrics and optimizer without running a step.

    Keras knows how to build what its own `train_step` uses, by tracing a forward pass. A
    `train_step` of the user's may use anything, so it is traced itself, unless the model runs
    eagerly, where Python code in it may not survive a trace.

    Args:
        model: A compiled `keras.Model`.
        element_spec: Of the training dataset's batches: `(x,)`, `(x, y)` or `(x, y, weight)`.
    """
    strategy = model.distribute_strategy
    with strategy.scope():
        if type(model).train_step is keras.Model.train_step or model.run_eagerly:
            build_symbolically(model, element_spec)
        else:
            step = tf.function(lambda data: strategy.run(model.train_step, args=(data,)))
            step.get_concrete_function(element_spec)


def build_without_data(model: Any) -> None:
    """Build what can be built when nothing is known of the batches: the optimizer.

    Raises:
        ConfigurationError: If the model itself is not built yet.
    """
    if not model.built:
        raise ConfigurationError(
            f"BackupAndRestore needs the variables of {model.name!r} before training starts, but "
            "it is not built yet. Train on `cluster.dataset(...)`, or call the model once on a "
            "batch before `fit`."
        )
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
