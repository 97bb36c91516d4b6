"""In one process, with an exchange that XLA cannot compile; ranks are in `rank_checks.py`."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.collectives import SingleProcess
from distrib.gradients.optimizer import distribute, reduction_of
from distrib.gradients.reduction import Reduction
from distrib.gradients.step_payload import StepPayload
from distrib.keras_compat.train_step import replace_train_step
from distrib.training.compiled_step import step_on_ranks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = (X[:, :1] > 0).astype("float32")


@pytest.fixture(autouse=True)
def _steps_of_ranks() -> Iterator[None]:
    replace_train_step(step_on_ranks)
    yield
    del keras.Model._make_function


class OwnApplyGradients(keras.optimizers.SGD):
    def apply_gradients(self, grads_and_vars: Any) -> Any:
        return super().apply_gradients([(-gradient, v) for gradient, v in grads_and_vars])


def reduced(optimizer: Any, op: Any = "average") -> Any:
    """An optimizer that reduces gradients as the only rank, which weighs its losses by 0.5."""

    def allreduce(tensors: Any, op: str, name: str) -> Any:
        types = [tensor.dtype for tensor in tensors]
        result = tf.numpy_function(lambda *arrays: arrays, tensors, types)
        for after, before in zip(result, tensors, strict=True):
            after.set_shape(before.shape)
        return result

    payload = StepPayload()
    payload.set_share(0.5)
    return distribute(optimizer, Reduction(allreduce, SingleProcess(), payload, None, op))


def trained(optimizer: Any, dtype: str = "float32", **options: Any) -> Any:
    """Return the history, and the variables of model and optimizer, of three epochs."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(8, "relu", dtype=dtype),
        keras.layers.BatchNormalization(dtype=dtype),
        keras.layers.Dropout(options.pop("dropout", 0.0), dtype=dtype),
        keras.layers.Dense(1, "sigmoid", dtype="float32"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    history = model.fit(X, Y, batch_size=8, epochs=3, verbose=0).history
    variables = [*model.variables, *model.optimizer.variables]
    return history, [variable.numpy() for variable in variables]


def alike(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    (history, variables), (others_history, others) = one, other
    assert history.keys() == others_history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, others_history[name], rtol=tolerance)
    for a, b in zip(variables, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10)


def scaled(optimizer: Any) -> Any:
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0, dynamic_growth_steps=2)


SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def test_a_step_compiled_in_halves_is_one_compiled_as_a_whole() -> None:
    def optimizer() -> Any:
        return Adam(0.05, global_clipnorm=1.0)

    # The dropout, too: XLA draws the same numbers in both.
    halves = trained(reduced(optimizer(), op="sum"), jit_compile=True, dropout=0.3)
    alike(halves, trained(optimizer(), jit_compile=True, dropout=0.3))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.05),
        lambda: Adam(0.05, gradient_accumulation_steps=2),
        lambda: OwnApplyGradients(0.05),
        lambda: SGD(0.05, use_ema=True, ema_overwrite_frequency=2),
        lambda: scaled(SGD(0.05)),
    ],
    ids=["sgd", "accumulates", "own apply_gradients", "averages", "scales the loss"],
)
@pytest.mark.parametrize("op", ["average", "sum"])
def test_a_compiled_step_is_one_that_is_not_compiled(make: Any, op: str) -> None:
    compiled = trained(reduced(make(), op), jit_compile=True)
    alike(compiled, trained(reduced(make(), op), jit_compile=False))


@pytest.mark.exhaustive
def test_mixed_precision() -> None:
    compiled, other = (
        trained(reduced(scaled(SGD(0.05))), "mixed_float16", jit_compile=compiles)
        for compiles in (True, False)
    )
    alike(compiled, other, tolerance=1e-2)


def test_a_model_is_built_by_its_first_batch() -> None:
    def losses(compiles: bool) -> list[float]:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        model.compile(reduced(scaled(SGD(0.05))), "mse", jit_compile=compiles)
        return [float(model.train_on_batch(X, Y)) for _ in range(4)]

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-4)


def test_a_model_with_a_train_step_of_its_own_is_not_compiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OwnStep(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    model = OwnStep([keras.Input((6,)), keras.layers.Dense(1)], name="mine")
    model.compile(reduced(SGD(0.1)), "mse", jit_compile=True)
    model.fit(X, Y, epochs=2, verbose=0)
    model.fit(X, Y, epochs=2, verbose=0)
    (message,) = caplog.messages
    assert message.startswith("the train step of 'mine' is not compiled by XLA: it is a `train_st")


def test_keras_compiles_a_step_in_which_nothing_is_exchanged() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=True)
    assert step_on_ranks(model) is None


def test_loss_scaling_decides_on_reduced_gradients() -> None:
    model = keras.Sequential([keras.layers.Dense(1, dtype="mixed_float16")])
    outer = keras.optimizers.LossScaleOptimizer(reduced(SGD(0.1)))
    model.compile(outer, "mse", jit_compile=True)
    assert step_on_ranks(model) is not None
    assert reduction_of(outer) is not None
