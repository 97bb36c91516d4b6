"""These fail when a Keras release changes what `keras_compat/train_step.py` relies on."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.keras_compat.optimizers import has_own_apply_gradients
from distrib.keras_compat.train_step import (
    FirstHalf,
    first_half,
    has_own_train_step,
    metrics_of,
    replace_train_step,
)

X = np.arange(24, dtype="float32").reshape(12, 2)
WORDS = np.array([[1, 2, 0], [3, 0, 0], [4, 5, 6], [2, 2, 0]])


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    if "_make_function" in vars(keras.Model):
        del keras.Model._make_function


def dense(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))
    # The rate is the one after the step.
    metrics = ["mae", lambda y, y_pred: optimizer.learning_rate]
    model.compile(optimizer, "mse", metrics=metrics, weighted_metrics=["mse"], **options)
    return model


def masked() -> Any:
    keras.utils.set_random_seed(1)
    embedding = keras.layers.Embedding(9, 4, mask_zero=True)
    model = keras.Sequential([keras.Input((3,)), embedding, keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def in_halves(model: Any, data: Any) -> Any:
    """Make a train step in two halves, of which the first is a function of its own."""
    first = tf.function(lambda data: first_half(model, data, model.optimizer.scale_loss))(data)
    assert isinstance(first, FirstHalf)
    model.optimizer.apply(first.gradients, model.trainable_weights)
    return metrics_of(model, data, first)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (dense, (X, X[:, :1], X[:, 1])),
        (dense, (X, X[:, :1])),
        (masked, (WORDS, WORDS[..., None].astype("float32"))),
    ],
    ids=["weighted", "dense", "masked"],
)
def test_two_halves_make_keras_own_step(make: Any, data: Any) -> None:
    whole, halves = make(), make()
    data = tuple(map(tf.constant, data))
    for _ in range(2):
        expected = tf.function(whole.train_step)(data)
        metrics = in_halves(halves, data)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert float(value) == pytest.approx(float(metrics[name]), rel=1e-6), name
    for one, other in zip(whole.variables, halves.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_model_that_xla_is_to_compile_gets_another_step() -> None:
    def step_of(model: Any) -> Any:
        def step(data: Any) -> Any:
            # XLA cannot compile this.
            tf.numpy_function(lambda x: batches.append(x.shape), [data[0]], [])
            return model.test_step(data)

        return step

    batches: list[Any] = []
    replace_train_step(step_of)
    model = dense(jit_compile=True)
    model.fit(X, X[:, :1], batch_size=12, verbose=0)
    model.train_on_batch(X, X[:, :1])
    assert batches == [X.shape] * 2
    assert model.jit_compile is True


def test_other_steps_are_keras_own() -> None:
    def step_of(model: Any) -> Any:
        asked.append(model.jit_compile)

    asked: list[bool] = []
    replace_train_step(step_of)
    for options in ({"jit_compile": "auto"}, {"run_eagerly": True}):  # No GPU here.
        dense(**options).fit(X, X[:, :1], verbose=0, validation_data=(X, X[:, :1]))
    assert asked == []
    # Validation is compiled, and asks for no step.
    model = dense(jit_compile=True)
    model.evaluate(X, X[:, :1], verbose=0)
    assert asked == []
    assert model.train_on_batch(X, X[:, :1])
    assert asked == [True]


def test_train_steps_and_apply_gradients_of_ones_own_are_noticed() -> None:
    class Model(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    class Adam(keras.optimizers.Adam):
        def apply_gradients(self, grads_and_vars: Any) -> Any:
            return super().apply_gradients(grads_and_vars)

    patched = dense()
    patched.train_step = lambda data: {}
    assert [has_own_train_step(model) for model in (dense(), Model(), patched)] == [0, 1, 1]
    optimizers = keras.optimizers
    plain = [optimizers.Adam(), optimizers.LossScaleOptimizer(optimizers.SGD())]
    assert [has_own_apply_gradients(optimizer) for optimizer in (*plain, Adam())] == [0, 0, 1]
