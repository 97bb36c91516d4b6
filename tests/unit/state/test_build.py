from typing import Any

import keras
import pytest
import tensorflow as tf

from distrib.errors import ConfigurationError
from distrib.state.build import build, build_for_epochs

SPEC = tf.TensorSpec((None, 4), tf.float32)


class Pair(keras.Model):
    """Trained by a `train_step` with two optimizers, and without `call`, as GANs are."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [keras.layers.Dense(2), keras.layers.Dense(1)]
        self.optimizers = [keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.9)]

    def train_step(self, data: Any) -> Any:
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(part(data))
            gradients = tape.gradient(loss, part.trainable_weights)
            optimizer.apply(gradients, part.trainable_weights)
        return {"loss": loss}


def test_a_built_model_needs_no_data() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    build_for_epochs(model, lambda: pytest.fail("asked for the data"))
    assert model.optimizer.built


def test_a_model_is_built_by_the_structure_of_the_batches() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    build_for_epochs(model, lambda: (SPEC, SPEC))
    assert model.built
    assert model.optimizer.built


def test_a_step_of_the_users_is_traced() -> None:
    model = Pair()
    model.compile()
    build_for_epochs(model, lambda: SPEC)
    assert all(part.built for part in model.parts)
    assert all(optimizer.built for optimizer in model.optimizers)


def test_a_loss_of_the_users_may_use_layers_that_the_forward_pass_does_not() -> None:
    class Distilled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = keras.layers.Dense(1), keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.student(x)

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            return tf.reduce_sum((self.teacher(x) - y_pred) ** 2)

    model = Distilled()
    model.compile("adam")
    build(model, (SPEC, SPEC))
    assert model.teacher.built


def test_what_cannot_be_created_is_explained() -> None:
    model = Pair()
    model.compile(run_eagerly=True)
    with pytest.raises(
        ConfigurationError, match=r"variables of 'pair.* could not be created.*Crea"
    ):
        build(model, SPEC)
