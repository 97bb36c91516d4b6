"""Gradient reduction for Keras 3 optimizers: one grouped allreduce before the optimizer's own work.

`distribute` replaces the methods `apply` and `scale_loss` of one optimizer object, not its class.
So everything that Keras does with gradients afterwards (clipping, weight decay, moving averages,
loss scaling, skipping a step that overflowed) uses the same numbers on every rank, and a saved
model holds the user's own optimizer, which loads without distrib.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distrib.errors import ConfigurationError
from distrib.gradients.layout import AgreedLayouts
from distrib.gradients.reduction import COMPRESSED_DTYPES, Reduction, reduce_gradients
from distrib.keras_compat.optimizers import CLIP_GRADIENTS, variables_to_train

_REDUCER = "_distrib_reducer"


def check_arguments(compression: Any, backward_passes_per_step: Any, op: Any) -> None:
    """Refuse arguments of `cluster.optimizer` that no backend supports.

    Raises:
        ConfigurationError: Names the argument and its valid values.
    """
    if compression not in (None, *COMPRESSED_DTYPES):
        raise ConfigurationError(
            f"`compression={compression!r}` is unknown; choose None, 'fp16' or 'bf16'."
        )
    if op not in ("average", "sum", "adasum"):
        raise ConfigurationError(f"`op={op!r}` is unknown; choose 'average', 'sum' or 'adasum'.")
    passes = backward_passes_per_step
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ConfigurationError(
            f"`backward_passes_per_step={passes!r}` must be a whole number, 1 or more."
        )


def as_optimizer(optimizer: Any) -> Any:
    """Return a Keras optimizer, or the one that `keras.optimizers.get` makes of a name or config.

    Raises:
        ConfigurationError: If the argument is none of these.
    """
    try:
        return keras.optimizers.get(optimizer)
    except ValueError as error:
        raise ConfigurationError(
            f"`optimizer={optimizer!r}` is not a keras.optimizers.Optimizer."
        ) from error


def accumulate(optimizer: Any, passes: int) -> Any:
    """Make an optimizer average the gradients of several batches before it applies them.

    Args:
        optimizer: A Keras optimizer that has no variables yet.
        passes: Number of batches.

    Returns:
        The same optimizer.

    Raises:
        ConfigurationError: If the optimizer accumulates another number of batches already, has
            variables, or is a `LossScaleOptimizer`.
    """
    if passes == 1:
        return optimizer
    if hasattr(optimizer, "inner_optimizer"):
        raise ConfigurationError(
            f"`backward_passes_per_step={passes}` does not work with a LossScaleOptimizer; pass "
            f"`gradient_accumulation_steps={passes}` to the inner optimizer, which reduces every "
            "pass."
        )
    steps = optimizer.gradient_accumulation_steps
    if steps not in (None, passes) or optimizer.built:
        raise ConfigurationError(
            f"`backward_passes_per_step={passes}`: the optimizer has variables already, or "
            f"`gradient_accumulation_steps={steps}`; pass a new optimizer without that argument."
        )
    optimizer.gradient_accumulation_steps = passes
    return optimizer


def distribute(optimizer: Any, reduction: Reduction) -> Any:
    """Make an optimizer reduce gradients over all ranks before it applies them.

    Args:
        optimizer: A Keras optimizer.
        reduction: How to reduce them.

    Returns:
        The same optimizer.
    """
    if reduction_of(optimizer) is None:
        Reducer(optimizer, reduction)
    return optimizer


def reduction_of(optimizer: Any) -> Reduction | None:
    """Return how an optimizer reduces gradients; `None` if it does not, or is `None`."""
    reducer = reducer_of(optimizer)
    return None if reducer is None else reducer.reduction


def reducer_of(optimizer: Any) -> Reducer | None:
    """Return what reduces an optimizer's gradients; `None` if nothing does, or it is `None`."""
    return None if optimizer is None else vars(optimizer).get(_REDUCER)


def reduce_outside_of_loss_scaling(optimizer: Any) -> None:
    """Move the reduction from the inner optimizer to the `LossScaleOptimizer` around it.

    `compile` wraps the optimizer of a mixed-float16 model in a `LossScaleOptimizer`, which skips
    steps whose gradients are not finite. If gradients were reduced after that decision, one rank
    could skip a step and leave the others waiting.
    """
    reducer = reducer_of(getattr(optimizer, "inner_optimizer", None))
    if reducer is not None:
        reducer.restore()
        distribute(optimizer, reducer.reduction)


class Reducer:
    """Replaces the methods of one optimizer that touch gradients and loss.

    A train step that is compiled in parts calls the parts of these methods one by one.

    Attributes:
        reduction: How gradients are reduced.
        accumulates: Whether the optimizer adds up gradients of several batches. Then it reduces
            them itself, when it applies them.
    """

    _count = 0

    def __init__(self, optimizer: Any, reduction: Reduction) -> None:
        self.reduction = reduction
        self._optimizer = optimizer
        self._number = Reducer._count
        self._name = ""
        Reducer._count += 1
        self.accumulates = bool(getattr(optimizer, "gradient_accumulation_steps", None))
        # Keras accumulates gradients in dense variables.
        allow_sparse = reduction.allows_sparse and not self.accumulates
        self._layouts = AgreedLayouts(reduction.collectives, allow_sparse)
        self._original = {
            "apply": optimizer.apply,
            "scale_loss": optimizer.scale_loss,
            CLIP_GRADIENTS: getattr(optimizer, CLIP_GRADIENTS),
        }
        optimizer.apply = self._apply
        optimizer.scale_loss = self._scale_loss
        if self.accumulates:
            setattr(optimizer, CLIP_GRADIENTS, self._reduce_and_clip)
        setattr(optimizer, _REDUCER, self)

    def restore(self) -> None:
        """Give the optimizer its own methods back."""
        for name in (*self._original, _REDUCER):
            vars(self._optimizer).pop(name, None)

    # The parts of a train step

    def share(self) -> Any:
        """Return the weight of this rank's loss, a scalar tensor; `None` for no weight."""
        average = self.reduction.op == "average"
        return self.reduction.step_payload.share.read_value() if average else None

    def scale_loss_by(self, share: Any, loss: Any) -> Any:
        """Return the loss to differentiate, given this rank's `share`."""
        loss = self._original["scale_loss"](loss)
        return loss if share is None else loss * tf.cast(share, loss.dtype)

    def reduce(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return the gradients to pass to `apply_reduced`."""
        self._agree_on_name()
        grads = self._layouts.convert(grads, variables)
        return grads if self.accumulates else reduce_gradients(grads, self.reduction, self._name)

    def apply_reduced(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Update the variables by what `reduce` has returned."""
        self._original["apply"](list(grads), list(variables))

    # What the optimizer's methods do instead
    #
    # In a user's own train step AutoGraph searches every called function for branches on tensors.
    # There are none in the next two methods, and the search takes seconds.

    @tf.autograph.experimental.do_not_convert
    def _apply(self, grads: Any, trainable_variables: Any = None) -> None:
        variables = list(
            variables_to_train(self._optimizer)
            if trainable_variables is None
            else trainable_variables
        )
        self.apply_reduced(self.reduce(list(grads), variables), variables)

    @tf.autograph.experimental.do_not_convert
    def _scale_loss(self, loss: Any) -> Any:
        return self.scale_loss_by(self.share(), loss)

    def _agree_on_name(self) -> None:
        """Name the collectives after the chief's number: ranks may have made other optimizers."""
        if not self._name:
            # In Python, once, while all ranks trace their first step.
            with tf.init_scope():
                number = self.reduction.collectives.broadcast(self._number)
            self._name = f"distrib.gradients.{number}"

    def _reduce_and_clip(self, grads: Any) -> Any:
        reduced = reduce_gradients(grads, self.reduction, self._name)
        return self._original[CLIP_GRADIENTS](reduced)
