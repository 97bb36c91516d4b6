from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.collectives import SingleProcess
from distrib.errors import ConfigurationError
from distrib.gradients.optimizer import (
    accumulate,
    distribute,
    reduce_outside_of_loss_scaling,
    reduction_of,
)
from distrib.gradients.reduction import Reduction
from distrib.gradients.step_payload import StepPayload


def tenfold(**options: Any) -> Reduction:
    """A reduction with a visible effect: it multiplies by ten."""

    def allreduce(tensors: Any, op: str, name: str) -> list[Any]:
        return [tensor * 10 for tensor in tensors]

    options = {"compression": None, "op": "average", **options}
    return Reduction(allreduce, SingleProcess(), StepPayload(), **options)


def apply(optimizer: Any, gradient: float) -> float:
    variable = keras.Variable(0.0)
    optimizer.apply([tf.constant(gradient)], [variable])
    return round(float(variable.numpy()), 5)


def test_gradients_are_reduced_before_the_optimizer_sees_them() -> None:
    assert apply(distribute(keras.optimizers.SGD(1.0), tenfold()), 0.1) == -1.0


def test_gradients_are_clipped_after_the_reduction() -> None:
    assert apply(distribute(keras.optimizers.SGD(1.0, clipvalue=0.5), tenfold()), 0.1) == -0.5


def test_wrapping_twice_reduces_once() -> None:
    optimizer = distribute(keras.optimizers.SGD(1.0), tenfold())
    assert apply(distribute(optimizer, tenfold()), 0.1) == -1.0


def test_accumulated_gradients_are_reduced_when_they_are_applied() -> None:
    optimizer = distribute(accumulate(keras.optimizers.SGD(1.0), 2), tenfold())
    variable = keras.Variable(0.0)
    for gradient, expected in ((0.1, 0.0), (0.3, -2.0)):
        optimizer.apply([tf.constant(gradient)], [variable])
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("passes", [1, 2])
def test_autograph_converts_nothing_of_distrib_in_a_users_train_step(
    passes: int, converted: list[Any]
) -> None:
    optimizer = distribute(accumulate(keras.optimizers.SGD(1.0), passes), tenfold())
    variable = keras.Variable(0.0)
    optimizer.build([variable])

    def users_step() -> Any:
        loss = optimizer.scale_loss(tf.constant(0.1))
        optimizer.apply([loss], [variable])
        return loss

    step = tf.function(users_step)
    for _ in range(passes):
        step()
    assert round(float(variable.numpy()), 5) == -1.0
    assert converted == [users_step]


@pytest.mark.parametrize(("op", "expected"), [("average", 1.0), ("sum", 4.0)])
def test_only_an_average_is_weighted_by_the_ranks_share(op: Any, expected: float) -> None:
    reduction = tenfold(op=op)
    optimizer = distribute(keras.optimizers.SGD(1.0), reduction)
    reduction.step_payload.set_share(0.25)
    assert float(optimizer.scale_loss(tf.constant(4.0))) == expected
    assert optimizer.scale_loss(tf.constant(4.0, tf.float64)).dtype == tf.float64


def test_a_distributed_optimizer_keeps_its_class_and_config() -> None:
    optimizer = distribute(keras.optimizers.Adam(0.1), tenfold())
    assert type(optimizer) is keras.optimizers.Adam
    plain = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert reduction_of(optimizer) is not None
    assert reduction_of(plain) is None
    assert reduction_of(None) is None


def test_loss_scaling_decides_on_reduced_gradients() -> None:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=2.0)
    distribute(scaled, tenfold())
    assert apply(scaled, 0.2) == -1.0
    # Finite on this rank, infinite after the reduction: the step is skipped.
    assert apply(scaled_by_compile(), 1e38) == 0.0


def scaled_by_compile() -> Any:
    """Wrap a distributed optimizer as `compile` does for a mixed-float16 model."""
    inner = distribute(keras.optimizers.SGD(1.0), tenfold())
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0)
    reduce_outside_of_loss_scaling(outer)
    assert reduction_of(inner) is None
    assert reduction_of(outer) is not None
    return outer


def test_impossible_accumulation_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`gradient_accumulation_steps=3`"):
        accumulate(keras.optimizers.SGD(gradient_accumulation_steps=3), 2)
    with pytest.raises(ConfigurationError, match="LossScaleOptimizer"):
        accumulate(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), 2)
