"""One step's gradients, made the same on all ranks.

Dense gradients go through one collective for each dtype that is sent, and with float32 that is one
for everything, step_payload included. Gradients of embeddings are `tf.IndexedSlices`: a few rows of
a table that may be large. Their rows are gathered instead of being added up, so that the optimizer
sees the very slices that one process would have.

Which gradients exist is fixed when the train step is traced. A rank may have one where another has
none; the ranks agree on the form of each, and one that has less sends zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol

import tensorflow as tf

from distrib.collectives import Collectives
from distrib.errors import ConfigurationError
from distrib.gradients.step_payload import StepPayload
from distrib.heartbeat import heartbeat

Compression = Literal["fp16", "bf16"]
Op = Literal["average", "sum", "adasum"]

DTYPES = {"fp16": tf.float16, "bf16": tf.bfloat16}


class Reduce(Protocol):
    """How a backend combines tensors of all replicas, in a train step."""

    def __call__(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        """Return the tensors combined; all have one dtype, and one collective does them all."""


class Gather(Protocol):
    """How a backend combines slices of all replicas, in a train step."""

    def __call__(
        self, values: Sequence[Any], indices: Sequence[Any], op: Op, name: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the rows and their int64 indices of all replicas, weighted as `op` says."""


@dataclass(frozen=True)
class Reduction:
    """How gradients become the same on all ranks.

    Attributes:
        reduce: The backend's collective for dense gradients.
        collectives: To agree on the form of the gradients.
        step_payload: What travels along.
        compression: Type that gradients are sent in; `None` sends them as they are.
        op: How they are combined.
        gather: The backend's collective for slices; `None` makes them dense.
    """

    reduce: Reduce
    collectives: Collectives
    step_payload: StepPayload
    compression: Compression | None
    op: Op
    gather: Gather | None = None


class Form(IntEnum):
    """What a gradient is; of two ranks' forms the greater one counts."""

    ABSENT = 0
    SLICES = 1
    DENSE = 2


class Forms:
    """The forms of a train step's gradients, agreed between the ranks.

    Args:
        reduction: How the gradients will be reduced.
        slices: Whether they may stay slices.
    """

    def __init__(self, reduction: Reduction, slices: bool) -> None:
        self._collectives = reduction.collectives
        self._slices = slices and reduction.gather is not None and reduction.op != "adasum"
        self._agreed: dict[tuple[str, ...], list[Form]] = {}

    def apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return the gradients in the agreed forms.

        Args:
            grads: Tensors, `tf.IndexedSlices` or `None`.
            variables: What they are gradients of.

        Raises:
            ConfigurationError: If a later trace has a gradient that the first one had not.
        """
        names = tuple(getattr(variable, "path", variable.name) for variable in variables)
        mine = [self._form_of(grad) for grad in grads]
        if names not in self._agreed:
            # Once for these variables, in Python, while all ranks prepare their first step.
            with tf.init_scope():
                everybody = self._collectives.allgather(mine)
            self._agreed[names] = [max(ranks) for ranks in zip(*everybody, strict=True)]
        agreed = self._agreed[names]
        for name, form, known in zip(names, mine, agreed, strict=True):
            if form > known:
                raise ConfigurationError(
                    f"The gradient of {name!r} is {form.name.lower()} now, and was "
                    f"{known.name.lower()} on all ranks when the train step was prepared first. "
                    "Let the loss depend on the same variables at every step."
                )
        return [
            _as_form(grad, form, variable)
            for grad, form, variable in zip(grads, agreed, variables, strict=True)
        ]

    def _form_of(self, grad: Any) -> Form:
        if grad is None:
            return Form.ABSENT
        is_slices = isinstance(grad, tf.IndexedSlices) and self._slices
        return Form.SLICES if is_slices else Form.DENSE


def reduce_gradients(grads: Sequence[Any], how: Reduction, name: str) -> list[Any]:
    """Combine gradients over all ranks, and exchange the step_payload.

    How long that takes is for supervisors, so it is measured where one listens.

    Args:
        grads: In the agreed forms.
        how: The collectives.
        name: Of the collectives, the same on all ranks.

    Returns:
        The gradients in the same forms and dtypes, equal on all ranks.
    """
    if not heartbeat.listened:
        return _reduce(grads, how, name)
    began = _time_after(grads)
    reduced = _reduce(grads, how, name)
    how.step_payload.wait_seconds.assign_add(_time_after(reduced) - began)
    return reduced


def _time_after(tensors: Sequence[Any]) -> Any:
    """Return when all tensors are there, in seconds."""
    parts = [part for part in tf.nest.flatten(tensors, expand_composites=True) if part is not None]
    with tf.control_dependencies(parts), tf.device("CPU:0"):
        return tf.timestamp()


def _reduce(grads: Sequence[Any], how: Reduction, name: str) -> list[Any]:
    reduced = list(grads)
    for dtype, places in _by_dtype(grads, tf.IndexedSlices, how).items():
        slices = [grads[place] for place in places]
        values, indices = _gather(slices, dtype, how, f"{name}.{dtype.name}.slices")
        for place, rows, where in zip(places, values, indices, strict=True):
            rows = tf.cast(rows, grads[place].dtype)
            reduced[place] = tf.IndexedSlices(rows, where, grads[place].dense_shape)
    groups = _by_dtype(grads, tf.Tensor, how)
    for dtype, places in groups.items():
        sent = [tf.cast(grads[place], dtype) for place in places]
        if _carries_payload(dtype, how):
            *results, numbers = how.reduce(
                [*sent, how.step_payload.pack()], how.op, f"{name}.float32"
            )
            how.step_payload.unpack(numbers)
        else:
            results = list(how.reduce(sent, how.op, f"{name}.{dtype.name}"))
        for place, result in zip(places, results, strict=True):
            reduced[place] = tf.cast(result, grads[place].dtype)
    if not any(_carries_payload(dtype, how) for dtype in groups):
        (numbers,) = how.reduce([how.step_payload.pack()], "sum", f"{name}.step_payload")
        how.step_payload.unpack(numbers)
    return reduced


def _carries_payload(dtype: Any, how: Reduction) -> bool:
    """Tell whether the step_payload go with the gradients of a dtype: others would spoil them."""
    return bool(dtype == tf.float32) and how.op != "adasum"


def _by_dtype(grads: Sequence[Any], kind: Any, how: Reduction) -> dict[Any, list[int]]:
    """Places of the gradients of one kind, by the dtype that they are sent in."""
    places: dict[Any, list[int]] = {}
    for place, grad in enumerate(grads):
        if isinstance(grad, kind):
            shrinks = how.compression and grad.dtype.is_floating and grad.dtype.size > 2
            dtype = DTYPES[how.compression] if shrinks and how.compression else grad.dtype
            places.setdefault(dtype, []).append(place)
    return places


def _gather(slices: Sequence[Any], dtype: Any, how: Reduction, name: str) -> Any:
    assert how.gather is not None  # Without it no form is `SLICES`.
    values = [tf.cast(grad.values, dtype) for grad in slices]
    indices = [tf.cast(grad.indices, tf.int64) for grad in slices]
    return how.gather(values, indices, how.op, name)


def _as_form(grad: Any, form: Form, variable: Any) -> Any:
    if form == Form.ABSENT:
        return None
    if grad is not None:
        return tf.convert_to_tensor(grad) if form == Form.DENSE else grad
    if form == Form.DENSE:
        return tf.zeros(variable.shape, variable.dtype)
    shape = variable.shape
    rows = tf.zeros([0, *shape[1:]], variable.dtype)
    return tf.IndexedSlices(rows, tf.zeros([0], tf.int64), tf.constant(shape, tf.int64))
