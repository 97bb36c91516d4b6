"""Helpers for Keras variables: replicas, weights, statistics, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distrib.keras_compat import layers


def replicas_of(variable: Any) -> tuple[Any, ...]:
    """Return the plain `tf.Variable`s of this process behind a Keras or distributed variable."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return tuple(getattr(value, "values", (value,)))


def weights_of_gradients(model: Any) -> set[int]:
    """Return the ids of all variables that gradients change, or would if they were not frozen.

    No replica changes these on its own, so they are the same everywhere. The layers' other
    variables, such as statistics of batch normalization, differ.
    """
    return {
        id(variable) for layer in layers.layers_of(model) for variable in layers.own_weights(layer)
    }


def statistics_of(model: Any) -> list[Any]:
    """Return the floating-point variables that layers which are not frozen update themselves."""
    found = {
        id(variable): variable
        for layer in layers.layers_of(model)
        if layer.trainable
        for variable in layers.own_statistics(layer)
        if keras.backend.is_float_dtype(variable.dtype)
    }
    return list(found.values())


def seeds_of(model: Any) -> set[int]:
    """Return the ids of the state variables of all seed generators in the model's layers."""
    return {
        id(generator.state)
        for layer in layers.layers_of(model)
        for generator in layers.own_seed_generators(layer)
    }


def seed_of_replica(state: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
    """Return the seed generator state of one replica, made of the first one's.

    Replicas with the same seed would use the same dropout mask.

    Args:
        state: `[seed, counter]` of the first replica.
        number: Of the replica; 0 gives `state` itself.
    """
    if number == 0:
        return state
    seed, counter = state
    (derived,) = np.random.SeedSequence([int(seed), number]).generate_state(1)
    return np.array([derived, counter], np.uint32).astype(state.dtype)


def held_by(model: Any) -> Iterator[Any]:
    """Yield optimizers and variables in a model's attributes, also in lists and dicts of them."""
    yield from tf.train.TrackableView(model).descendants()
    # TensorFlow does not look into the lists and dicts of Keras's layers.
    for layer in layers.layers_of(model):
        for value in vars(layer).values():
            members = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict):
                for held in members:
                    if isinstance(held, keras.optimizers.Optimizer | tf.Variable):
                        yield held


def optimizers_of(model: Any) -> list[Any]:
    """Return the optimizers that train a model: the compiled one, or those of its `train_step`."""
    held = (thing for thing in held_by(model) if isinstance(thing, keras.optimizers.Optimizer))
    own = {id(each): each for each in held}  # Keras's trackers hold some of them a second time.
    if type(model).train_step is keras.Model.train_step or not own:
        return [model.optimizer]
    return list(own.values())


def ids_of_variables(model: Any) -> set[int]:
    """Return the ids of all variables of a model, its metrics and its optimizers, in any guise."""
    variables = [*model.variables, *model.metrics_variables]
    for optimizer in optimizers_of(model):
        variables += optimizer.variables if optimizer is not None else []
    return {
        id(guise)
        for variable in variables
        for guise in (variable, getattr(variable, "value", variable), *replicas_of(variable))
    }
