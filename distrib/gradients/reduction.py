"""Reduces one step's gradients over all ranks, so that they are equal on all of them.

Dense gradients take one collective for each dtype sent: with float32, a single one that also
carries the `StepPayload`. Of sparse gradients (`tf.IndexedSlices`) the rows are gathered instead of
summed, so the optimizer sees the same slices as in a single process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import tensorflow as tf

from distrib.collectives import Collectives
from distrib.gradients.step_payload import StepPayload
from distrib.heartbeat import heartbeat
from distrib.keras_compat.determinism import is_deterministic

Compression = Literal["fp16", "bf16"]
Op = Literal["average", "sum", "adasum"]

COMPRESSED_DTYPES = {"fp16": tf.float16, "bf16": tf.bfloat16}


class Allreduce(Protocol):
    """A backend's collective for dense gradients, inside a train step."""

    def __call__(self, tensors: Sequence[Any], op: Op, name: str) -> Sequence[Any]:
        """Return the tensors, which share one dtype, combined over all replicas."""


class Allgather(Protocol):
    """A backend's collective for sparse gradients, inside a train step."""

    def __call__(
        self, values: Sequence[Any], indices: Sequence[Any], op: Op, name: str
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the rows of all replicas, weighted as `op` says, and their int64 indices."""


@dataclass(frozen=True)
class Reduction:
    """How to reduce gradients over all ranks.

    Attributes:
        allreduce: The backend's collective for dense gradients.
        collectives: Collectives to agree on the layout of the gradients.
        step_payload: Flags and loss that travel with the gradients.
        compression: Dtype in which to send gradients; `None` sends them in their own.
        op: How to combine gradients.
        allgather: The backend's collective for sparse gradients. Defaults to `None`: gradients are
            made dense.
    """

    allreduce: Allreduce
    collectives: Collectives
    step_payload: StepPayload
    compression: Compression | None
    op: Op
    allgather: Allgather | None = None

    @property
    def allows_sparse(self) -> bool:
        """Whether sparse gradients can stay sparse."""
        return self.allgather is not None and self.op != "adasum"


def reduce_gradients(grads: Sequence[Any], reduction: Reduction, name: str) -> list[Any]:
    """Combine gradients over all ranks, and exchange the step payload.

    Measures the time it takes if a supervisor reads this rank's heartbeat, and TensorFlow may look
    at the clock: it refuses to when it is to compute deterministically.

    Args:
        grads: Gradients in the agreed layouts.
        reduction: How to reduce them.
        name: Name of the collectives, the same on all ranks.

    Returns:
        The gradients in the same layouts and dtypes, equal on all ranks.
    """
    if not heartbeat.connected or is_deterministic():
        return _reduce(grads, reduction, name)
    start = _time_after(grads)
    reduced = _reduce(grads, reduction, name)
    reduction.step_payload.wait_seconds.assign_add(_time_after(reduced) - start)
    return reduced


def _time_after(tensors: Sequence[Any]) -> Any:
    """Return the time in seconds at which all tensors have been computed."""
    parts = [part for part in tf.nest.flatten(tensors, expand_composites=True) if part is not None]
    with tf.control_dependencies(parts), tf.device("CPU:0"):
        return tf.timestamp()


def _reduce(grads: Sequence[Any], reduction: Reduction, name: str) -> list[Any]:
    reduced = list(grads)
    for dtype, numbers in _numbers_by_dtype(grads, tf.IndexedSlices, reduction).items():
        slices = [grads[i] for i in numbers]
        values, indices = _gather(slices, dtype, reduction, f"{name}.{dtype.name}.slices")
        for i, rows, row_indices in zip(numbers, values, indices, strict=True):
            rows = tf.cast(rows, grads[i].dtype)
            reduced[i] = tf.IndexedSlices(rows, row_indices, grads[i].dense_shape)
    payload = reduction.step_payload
    dense = _numbers_by_dtype(grads, tf.Tensor, reduction)
    for dtype, numbers in dense.items():
        sent = [tf.cast(grads[i], dtype) for i in numbers]
        if _carries_payload(dtype, reduction):
            *results, received = reduction.allreduce(
                [*sent, payload.pack()], reduction.op, f"{name}.float32"
            )
            payload.unpack(received)
        else:
            results = list(reduction.allreduce(sent, reduction.op, f"{name}.{dtype.name}"))
        for i, result in zip(numbers, results, strict=True):
            reduced[i] = tf.cast(result, grads[i].dtype)
    if not any(_carries_payload(dtype, reduction) for dtype in dense):
        (received,) = reduction.allreduce([payload.pack()], "sum", f"{name}.step_payload")
        payload.unpack(received)
    return reduced


def _carries_payload(dtype: Any, reduction: Reduction) -> bool:
    """Tell whether gradients of this dtype carry the payload: others would make it inexact."""
    return bool(dtype == tf.float32) and reduction.op != "adasum"


def _numbers_by_dtype(
    grads: Sequence[Any], kind: Any, reduction: Reduction
) -> dict[Any, list[int]]:
    """Group the gradients of one kind by the dtype in which they are sent."""
    groups: dict[Any, list[int]] = {}
    for i, grad in enumerate(grads):
        if isinstance(grad, kind):
            groups.setdefault(_dtype_sent(grad.dtype, reduction.compression), []).append(i)
    return groups


def _dtype_sent(dtype: Any, compression: Compression | None) -> Any:
    if compression and dtype.is_floating and dtype.size > 2:
        return COMPRESSED_DTYPES[compression]
    return dtype


def _gather(slices: Sequence[Any], dtype: Any, reduction: Reduction, name: str) -> Any:
    assert reduction.allgather is not None  # Otherwise no layout is `SPARSE`.
    values = [tf.cast(grad.values, dtype) for grad in slices]
    indices = [tf.cast(grad.indices, tf.int64) for grad in slices]
    return reduction.allgather(values, indices, reduction.op, name)
