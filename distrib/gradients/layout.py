"""Which gradients a train step has, and in which layout, agreed between the ranks.

Gradients of embeddings are `tf.IndexedSlices`: a few rows of a table that may be large. They stay
sparse where the backend can gather rows.

Tracing the train step fixes which gradients exist. A rank may have a gradient that another rank
lacks, or have it sparse where another has it dense. All ranks must run the same collectives, so
they agree on the layout of each gradient, and a rank without it sends zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import tensorflow as tf

from distrib.collectives import Collectives
from distrib.errors import ConfigurationError


class GradientLayout(IntEnum):
    """Layout of a gradient; the ranks agree on the largest value that any of them has."""

    ABSENT = 0
    SPARSE = 1
    DENSE = 2


class AgreedLayouts:
    """The layouts of a train step's gradients, agreed between the ranks.

    Args:
        collectives: Collectives for the agreement.
        allow_sparse: Whether `tf.IndexedSlices` stay sparse instead of being made dense.
    """

    def __init__(self, collectives: Collectives, allow_sparse: bool) -> None:
        self._collectives = collectives
        self._allow_sparse = allow_sparse
        self._agreed: dict[tuple[str, ...], list[GradientLayout]] = {}

    def convert(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return the gradients in the agreed layouts.

        Args:
            grads: Tensors, `tf.IndexedSlices` or `None`.
            variables: The variable of each gradient.

        Raises:
            ConfigurationError: If a later trace has a gradient that the first trace lacked.
        """
        names = tuple(getattr(variable, "path", variable.name) for variable in variables)
        own = [self.layout_of(grad) for grad in grads]
        if names not in self._agreed:
            # In Python, once for each set of variables, while all ranks trace their first step.
            with tf.init_scope():
                of_all_ranks = self._collectives.allgather(own)
            self._agreed[names] = [max(layouts) for layouts in zip(*of_all_ranks, strict=True)]
        agreed = self._agreed[names]
        for name, layout, known in zip(names, own, agreed, strict=True):
            if layout > known:
                raise ConfigurationError(
                    f"The gradient of {name!r} is {layout.name.lower()} now, but was "
                    f"{known.name.lower()} on all ranks when the train step was first traced. "
                    "Let the loss depend on the same variables at every step."
                )
        return [
            _convert(grad, layout, variable)
            for grad, layout, variable in zip(grads, agreed, variables, strict=True)
        ]

    def layout_of(self, grad: Any) -> GradientLayout:
        """Return the layout in which this rank would send a gradient."""
        if grad is None:
            return GradientLayout.ABSENT
        is_sparse = isinstance(grad, tf.IndexedSlices) and self._allow_sparse
        return GradientLayout.SPARSE if is_sparse else GradientLayout.DENSE


def _convert(grad: Any, layout: GradientLayout, variable: Any) -> Any:
    if layout == GradientLayout.ABSENT:
        return None
    if grad is not None:
        return tf.convert_to_tensor(grad) if layout == GradientLayout.DENSE else grad
    if layout == GradientLayout.DENSE:
        return tf.zeros(variable.shape, variable.dtype)
    shape = variable.shape
    no_rows = tf.zeros([0, *shape[1:]], variable.dtype)
    return tf.IndexedSlices(no_rows, tf.zeros([0], tf.int64), tf.constant(shape, tf.int64))
