"""Private parts of Keras's optimizers. Tried with 3.12 and 3.15.

- `_trainable_variables`: what it was built for
- `_learning_rate`: the variable, where it is no schedule
- `_clip_gradients(grads)`: called with the gradients that are applied, after accumulation
- `_accumulated_gradients`: sums of several batches' gradients, for `gradient_accumulation_steps`
- `_model_variables_moving_average`: the averages of `use_ema`
- `_distribution_strategy`, `_all_reduce_sum_gradients(grads)`: the sum over the replicas of a
  `tf.distribute.Strategy`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

CLIP_GRADIENTS = "_clip_gradients"


def chain_of(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and the ones that it wraps, as `LossScaleOptimizer` does."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def variables_to_train(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def has_own_apply_gradients(optimizer: Any) -> bool:
    """Tell whether an optimizer's `apply_gradients` is more than a call of `apply`, as in Keras."""
    own = type(optimizer).apply_gradients
    return own is not keras.optimizers.Optimizer.apply_gradients


def learning_rate_of(optimizer: Any) -> Any:
    """Return what an optimizer, or the one that it wraps, takes its learning rate from.

    Returns:
        A `keras.Variable` or a `keras.optimizers.schedules.LearningRateSchedule`; `None` without
        an optimizer.
    """
    *_, inner = (None, *chain_of(optimizer))
    return getattr(inner, "_learning_rate", None)


def updates_in_a_condition(optimizer: Any) -> Iterator[str]:
    """Yield the arguments for which an optimizer updates variables in some steps only.

    It does so in a branch of a conditional, where `MirroredStrategy` cannot update variables.
    """
    for each in chain_of(optimizer):
        if each.gradient_accumulation_steps:
            yield "gradient_accumulation_steps"
        if each.use_ema and each.ema_overwrite_frequency:
            yield "ema_overwrite_frequency"


def accumulated_gradients_of(optimizer: Any) -> Iterator[Any]:
    """Yield the variables in which an optimizer adds up gradients of several batches."""
    for each in chain_of(optimizer):
        yield from getattr(each, "_accumulated_gradients", ())


def moving_averages_of(optimizer: Any) -> list[Any]:
    """Return the averages of the trained variables that an optimizer with `use_ema` keeps."""
    return list(optimizer._model_variables_moving_average)


def strategy_of(optimizer: Any) -> Any:
    """Return the `tf.distribute.Strategy` that an optimizer was made under; `None` for none."""
    return optimizer._distribution_strategy


def disable_sum_over_replicas(optimizer: Any, strategy: Any) -> None:
    """Have an optimizer, and those that it wraps, add no gradients up over replicas by itself.

    Args:
        optimizer: Wherever it was made.
        strategy: The one that its model is made under.
    """
    for each in chain_of(optimizer):
        each._distribution_strategy = strategy
        each._all_reduce_sum_gradients = list
