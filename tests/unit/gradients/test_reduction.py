from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distrib.collectives import SingleProcess
from distrib.errors import ConfigurationError
from distrib.gradients.reduction import Form, Forms, Reduction, reduce_gradients
from distrib.gradients.step_payload import Request, StepPayload


class TwoRanks(SingleProcess):
    """This rank's gradients, and another's whose forms a test chooses."""

    def __init__(self, others: list[Form]) -> None:
        self.others, self.asked = others, 0

    def allgather(self, value: Any) -> list[Any]:
        self.asked += 1
        return [value, self.others]


class Doubling:
    """Another rank that always has what this one has."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []

    def reduce(self, tensors: Sequence[Any], op: str, name: str) -> list[Any]:
        assert len({tensor.dtype for tensor in tensors}) == 1
        self.calls.append((name, op, [tensor.dtype.name for tensor in tensors]))
        return [tensor if op == "average" else 2 * tensor for tensor in tensors]

    def gather(
        self, values: Sequence[Any], indices: Sequence[Any], op: str, name: str
    ) -> tuple[list[Any], list[Any]]:
        self.calls.append((name, op, [value.dtype.name for value in values]))
        return [tf.concat([rows, rows], 0) for rows in values], [
            tf.concat([where, where], 0) for where in indices
        ]


def reduction(ranks: Any = None, **options: Any) -> tuple[Reduction, Doubling]:
    other = Doubling()
    how = {"compression": None, "op": "average", "gather": other.gather, **options}
    return Reduction(other.reduce, ranks or SingleProcess(), StepPayload(), **how), other


def slices(rows: list[list[float]], indices: list[int]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(rows), tf.constant(indices), tf.constant([5, 2]))


def test_one_collective_for_all_and_the_riders() -> None:
    how, other = reduction()
    how.step_payload.request(Request.STOP, True)
    grads = [tf.constant([1.0, 2.0]), None, tf.constant([[3.0]])]
    reduced = reduce_gradients(grads, how, "g")
    assert other.calls == [("g.float32", "average", ["float32"] * 3)]
    assert reduced[1] is None
    np.testing.assert_array_equal(reduced[0], [1, 2])
    how.step_payload.read()
    assert how.step_payload.agreed == {Request.STOP}


def test_one_collective_for_each_dtype() -> None:
    how, other = reduction(op="sum")
    grads = [tf.constant(1.0), tf.constant(2.0, tf.float64), tf.constant(3.0)]
    reduced = reduce_gradients(grads, how, "g")
    assert [call[0] for call in other.calls] == ["g.float32", "g.float64"]
    assert [float(grad) for grad in reduced] == [2, 4, 6]
    assert reduced[1].dtype == tf.float64


@pytest.mark.parametrize(("compression", "sent"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_compression_leaves_the_riders_exact(compression: Any, sent: str) -> None:
    how, other = reduction(compression=compression)
    reduced = reduce_gradients([tf.constant(1.0), tf.constant(2.0, tf.float16)], how, "g")
    assert sorted(call[2][0] for call in other.calls) == sorted({sent, "float16", "float32"})
    assert other.calls[-1] == ("g.step_payload", "sum", ["float32"])
    assert [grad.dtype.name for grad in reduced] == ["float32", "float16"]


def test_adasum_would_spoil_the_riders() -> None:
    how, other = reduction(op="adasum")
    reduce_gradients([tf.constant(1.0)], how, "g")
    assert [call[:2] for call in other.calls] == [
        ("g.float32", "adasum"),
        ("g.step_payload", "sum"),
    ]


def test_slices_are_gathered() -> None:
    how, other = reduction(compression="fp16")
    (reduced,) = reduce_gradients([slices([[1.0, 2.0]], [3])], how, "g")
    assert ("g.float16.slices", "average", ["float16"]) in other.calls
    assert isinstance(reduced, tf.IndexedSlices)
    assert reduced.values.dtype == tf.float32
    np.testing.assert_array_equal(reduced.indices, [3, 3])


VARIABLES = [tf.Variable(tf.zeros([5, 2]), name=name) for name in "abc"]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([Form.ABSENT] * 3, [Form.ABSENT, Form.SLICES, Form.DENSE]),
        ([Form.SLICES] * 3, [Form.SLICES, Form.SLICES, Form.DENSE]),
        ([Form.DENSE] * 3, [Form.DENSE, Form.DENSE, Form.DENSE]),
    ],
)
def test_the_ranks_agree_on_forms(theirs: list[Form], expected: list[Form]) -> None:
    how, _ = reduction(TwoRanks(theirs))
    forms = Forms(how, slices=True)
    grads = [None, slices([[1.0, 1.0], [2.0, 2.0]], [1, 1]), tf.ones([5, 2])]
    applied = forms.apply(grads, VARIABLES)
    assert [forms._form_of(grad) for grad in applied] == expected
    if applied[0] is not None:
        assert float(tf.reduce_sum(tf.convert_to_tensor(applied[0]))) == 0.0
    np.testing.assert_array_equal(tf.convert_to_tensor(applied[1])[1], [3, 3])


def test_the_ranks_agree_once() -> None:
    ranks = TwoRanks([Form.DENSE] * 3)
    forms = Forms(reduction(ranks)[0], slices=True)
    for _ in range(3):
        forms.apply([None, tf.ones([5, 2]), tf.ones([5, 2])], VARIABLES)
    assert ranks.asked == 1


def test_a_gradient_that_appears_later_is_refused() -> None:
    forms = Forms(reduction(TwoRanks([Form.ABSENT] * 3))[0], slices=True)
    forms.apply([None, tf.ones([5, 2]), None], VARIABLES)
    with pytest.raises(ConfigurationError, match="'a:0' is dense now, and was absent on all ranks"):
        forms.apply([tf.ones([5, 2]), tf.ones([5, 2]), None], VARIABLES)


@pytest.mark.parametrize("options", [{"gather": None}, {"op": "adasum"}])
def test_where_slices_cannot_be_gathered_they_are_made_dense(options: Any) -> None:
    how, _ = reduction(**options)
    (grad,) = Forms(how, slices=True).apply([slices([[1.0, 1.0]], [1])], VARIABLES[:1])
    assert grad.shape == (5, 2)
