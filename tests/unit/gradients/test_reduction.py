import dataclasses
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism, enable_op_determinism

from distrib.collectives import SingleProcess
from distrib.gradients.reduction import Reduction, reduce_gradients
from distrib.gradients.step_payload import Request, StepPayload


class MirrorRank:
    """Another rank that always has the same gradients as this one."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []

    def allreduce(self, tensors: Sequence[Any], op: str, name: str) -> list[Any]:
        assert len({tensor.dtype for tensor in tensors}) == 1
        self.calls.append((name, op, [tensor.dtype.name for tensor in tensors]))
        return [tensor if op == "average" else 2 * tensor for tensor in tensors]

    def allgather(
        self, values: Sequence[Any], indices: Sequence[Any], op: str, name: str
    ) -> tuple[list[Any], list[Any]]:
        self.calls.append((name, op, [value.dtype.name for value in values]))
        return [tf.concat([rows, rows], 0) for rows in values], [
            tf.concat([own, own], 0) for own in indices
        ]


def make_reduction(**options: Any) -> tuple[Reduction, MirrorRank]:
    other = MirrorRank()
    options = {"compression": None, "op": "average", "allgather": other.allgather, **options}
    return Reduction(other.allreduce, SingleProcess(), StepPayload(), **options), other


def test_one_collective_carries_all_gradients_and_the_payload() -> None:
    reduction, other = make_reduction()
    reduction.step_payload.request(Request.STOP, True)
    grads = [tf.constant([1.0, 2.0]), None, tf.constant([[3.0]])]
    reduced = reduce_gradients(grads, reduction, "g")
    assert other.calls == [("g.float32", "average", ["float32"] * 3)]
    assert reduced[1] is None
    np.testing.assert_array_equal(reduced[0], [1, 2])
    reduction.step_payload.read()
    assert reduction.step_payload.agreed == {Request.STOP}


def test_one_collective_for_each_dtype() -> None:
    reduction, other = make_reduction(op="sum")
    grads = [tf.constant(1.0), tf.constant(2.0, tf.float64), tf.constant(3.0)]
    reduced = reduce_gradients(grads, reduction, "g")
    assert [call[0] for call in other.calls] == ["g.float32", "g.float64"]
    assert [float(grad) for grad in reduced] == [2, 4, 6]
    assert reduced[1].dtype == tf.float64


@pytest.fixture(params=["deterministic", "not"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param == "deterministic":
        enable_op_determinism()
    yield request.param == "deterministic"
    disable_op_determinism()


def test_the_exchange_is_timed_unless_deterministic(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow has no clock when it computes deterministically."""
    monkeypatch.setattr("distrib.gradients.reduction.heartbeat", SimpleNamespace(connected=True))
    reduction, other = make_reduction()

    def slow(tensors: Sequence[Any], op: str, name: str) -> list[Any]:
        time.sleep(0.02)
        return other.allreduce(tensors, op, name)

    reduction = dataclasses.replace(reduction, allreduce=slow)
    (reduced,) = reduce_gradients([tf.constant(2.0)], reduction, "g")
    assert float(reduced) == 2.0
    assert (float(reduction.step_payload.wait_seconds) > 0) is not deterministic


@pytest.mark.parametrize(("compression", "sent"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_compression_leaves_the_payload_exact(compression: Any, sent: str) -> None:
    reduction, other = make_reduction(compression=compression)
    reduced = reduce_gradients([tf.constant(1.0), tf.constant(2.0, tf.float16)], reduction, "g")
    assert sorted(call[2][0] for call in other.calls) == sorted({sent, "float16", "float32"})
    assert other.calls[-1] == ("g.step_payload", "sum", ["float32"])
    assert [grad.dtype.name for grad in reduced] == ["float32", "float16"]


def test_adasum_sends_the_payload_in_a_sum_of_its_own() -> None:
    reduction, other = make_reduction(op="adasum")
    reduce_gradients([tf.constant(1.0)], reduction, "g")
    assert [call[:2] for call in other.calls] == [
        ("g.float32", "adasum"),
        ("g.step_payload", "sum"),
    ]


def test_slices_are_gathered() -> None:
    reduction, other = make_reduction(compression="fp16")
    grad = tf.IndexedSlices(tf.constant([[1.0, 2.0]]), tf.constant([3]), tf.constant([5, 2]))
    (reduced,) = reduce_gradients([grad], reduction, "g")
    assert ("g.float16.slices", "average", ["float16"]) in other.calls
    assert isinstance(reduced, tf.IndexedSlices)
    assert reduced.values.dtype == tf.float32
    np.testing.assert_array_equal(reduced.indices, [3, 3])


@pytest.mark.parametrize("options", [{"allgather": None}, {"op": "adasum"}])
def test_slices_stay_sparse_only_where_they_can_be_gathered(options: Any) -> None:
    assert make_reduction()[0].allows_sparse
    assert not make_reduction(**options)[0].allows_sparse
