from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distrib.collectives import SingleProcess
from distrib.errors import ConfigurationError
from distrib.gradients.layout import AgreedLayouts, GradientLayout

ABSENT, SPARSE, DENSE = GradientLayout
VARIABLES = [tf.Variable(tf.zeros([5, 2]), name=name) for name in "abc"]


class TwoRanks(SingleProcess):
    """This rank, and another one whose layouts a test chooses."""

    def __init__(self, others: list[GradientLayout]) -> None:
        self.others, self.calls = others, 0

    def allgather(self, value: Any) -> list[Any]:
        self.calls += 1
        return [value, self.others]


def slices(rows: list[list[float]], indices: list[int]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(rows), tf.constant(indices), tf.constant([5, 2]))


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([ABSENT] * 3, [ABSENT, SPARSE, DENSE]),
        ([SPARSE] * 3, [SPARSE, SPARSE, DENSE]),
        ([DENSE] * 3, [DENSE, DENSE, DENSE]),
    ],
)
def test_the_ranks_agree_on_layouts(
    theirs: list[GradientLayout], expected: list[GradientLayout]
) -> None:
    layouts = AgreedLayouts(TwoRanks(theirs), allow_sparse=True)
    grads = [None, slices([[1.0, 1.0], [2.0, 2.0]], [1, 1]), tf.ones([5, 2])]
    converted = layouts.convert(grads, VARIABLES)
    assert [layouts.layout_of(grad) for grad in converted] == expected
    if converted[0] is not None:
        assert float(tf.reduce_sum(tf.convert_to_tensor(converted[0]))) == 0.0
    np.testing.assert_array_equal(tf.convert_to_tensor(converted[1])[1], [3, 3])


def test_the_ranks_agree_once() -> None:
    ranks = TwoRanks([DENSE] * 3)
    layouts = AgreedLayouts(ranks, allow_sparse=True)
    for _ in range(3):
        layouts.convert([None, tf.ones([5, 2]), tf.ones([5, 2])], VARIABLES)
    assert ranks.calls == 1


def test_a_gradient_that_appears_later_is_refused() -> None:
    layouts = AgreedLayouts(TwoRanks([ABSENT] * 3), allow_sparse=True)
    layouts.convert([None, tf.ones([5, 2]), None], VARIABLES)
    with pytest.raises(ConfigurationError, match="'a:0' is dense now, but was absent on all ranks"):
        layouts.convert([tf.ones([5, 2]), tf.ones([5, 2]), None], VARIABLES)


def test_slices_are_made_dense_unless_sparse_is_allowed() -> None:
    layouts = AgreedLayouts(SingleProcess(), allow_sparse=False)
    (grad,) = layouts.convert([slices([[1.0, 1.0]], [1])], VARIABLES[:1])
    assert grad.shape == (5, 2)
